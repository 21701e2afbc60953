"""Lightning attention (TransNormerLLM, Qin et al. 2023, arXiv:2307.14995; Lightning Attention-2, arXiv:2401.04658).

    S_t = lambda_h S_{t-1} + k_t v_t^T,   o_t = q_t S_t,   y_t = W_o (W_u x_t * norm(o_t)),
    q, k = SiLU(W x), v = W x; no normaliser: the norm over all heads takes its place.

lambda_h = exp(-slope) is fixed per head and layer; two conventions exist and are not interchangeable:
    transnormer   slope = ALiBi slope of the head * (1 - l / (L - 1) + 1e-5)        head 0 forgets fastest
    paper         slope = (8 h / H) * (1 - l / L)                                   head 0 never forgets
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import linear_attention, linear_attention_step
from zoo.mixers.base import Cost, Mixer
from zoo.mixers.cache import StateCache
from zoo.mixers.gates import build_gate
from zoo.mixers.norms import build_norm
from zoo.mixers.positions import LinearizedRelativeEncoding
from zoo.mixers.registry import register

DECAYS = ("transnormer", "paper")
LRPE = ("first", "all", "none")
CHUNK = 64


def alibi_slopes(heads: int, device: torch.device | str | None = None) -> Tensor:
    """ALiBi slopes ``(H,)`` fp32 (Press et al. 2021, arXiv:2108.12409): 2^(-8(h+1)/H), interleaved for other H."""
    base = 2 ** (heads.bit_length() - 1)
    h = torch.arange(heads, dtype=torch.float32, device=device)
    return torch.where(h < base, 2 ** (-8 * (h + 1) / base), 2 ** (-4 * (2 * (h - base) + 1) / base))


def lightning_slopes(
    decay: str, heads: int, layer: int, depth: int, device: torch.device | str | None = None
) -> Tensor:
    """Decay rates ``(H,)`` fp32, >= 0, of layer ``layer`` of ``depth``; computed afresh, so no cast can touch them."""
    if decay == "transnormer":
        return alibi_slopes(heads, device) * (1 - layer / max(depth - 1, 1) + 1e-5)
    return torch.arange(heads, dtype=torch.float32, device=device) * (8 / heads) * (1 - layer / depth)


@register("lightning")
class LightningAttention(Mixer):
    """Lightning attention.

    Args:
        decay: convention of the decay rates, ``transnormer`` or ``paper``.
        algorithm: of the kernel: ``auto``, ``parallel``, ``chunk`` or ``scan``; all give the same result.
        lrpe: layers with LRPE-d positions: ``first``, ``all`` or ``none``.
        norm: over all heads of the output: ``srms`` (no weight) or ``rms``.
        gate: output gate: ``linear`` (TransNormerLLM), ``sigmoid`` (MiniMax-01) or ``none``.

    Raises:
        ValueError: on values outside these.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        decay: str = "transnormer",
        algorithm: str = "auto",
        lrpe: str = "first",
        norm: str = "srms",
        gate: str = "linear",
    ) -> None:
        super().__init__(width, heads, depth, layer)
        if decay not in DECAYS:
            raise ValueError(f"decay={decay!r}: expected one of {', '.join(DECAYS)}.")
        if lrpe not in LRPE:
            raise ValueError(f"lrpe={lrpe!r}: expected one of {', '.join(LRPE)}.")
        self.decay, self.algorithm = decay, algorithm
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        encoded = lrpe == "all" or (lrpe == "first" and layer == 0)
        self.lrpe = LinearizedRelativeEncoding(heads, self.head_width) if encoded else None
        self.norm = build_norm(norm, width)
        self.gate = build_gate(gate, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        marks: Tensor | None = None,
        cache: StateCache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """See :class:`zoo.mixers.base.Mixer`."""
        self.check_call(documents, cache, lengths)
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.query, self.key, self.value))
        q, k = F.silu(q), F.silu(k)
        if self.lrpe is not None:
            positions = self.positions(x, documents, cache)
            q, k = self.lrpe(q, positions), self.lrpe(k, positions)
        log_decay = -lightning_slopes(self.decay, self.heads, self.layer, self.depth, x.device)
        if cache is not None:
            y = self._attend_cached(q, k, v, log_decay, cache, lengths)
        else:
            y, _ = linear_attention(q, k, v, log_decay, documents=documents, algorithm=self.algorithm)
        y = self.norm(y.flatten(-2))
        return self.out(y if self.gate is None else self.gate(y, x))

    def _attend_cached(
        self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, cache: StateCache, lengths: Tensor | None
    ) -> Tensor:
        batch, length = q.shape[:2]
        if length == 1 and lengths is None:
            cache.lengths = cache.lengths + 1
            return linear_attention_step(q[:, 0], k[:, 0], v[:, 0], log_decay, cache.state)[:, None]
        advance = torch.full_like(cache.lengths, length)
        if lengths is not None:  # padding must neither be remembered nor decay the state
            advance = lengths.to(cache.lengths)
            real = torch.arange(length, device=q.device)[None] < advance[:, None]
            k, log_decay = k * real[..., None, None], log_decay.expand(batch, length, -1) * real[..., None]
        y, state = linear_attention(
            q, k, v, log_decay, initial_state=cache.state, return_state=True, algorithm=self.algorithm
        )
        assert isinstance(state, Tensor)
        cache.state, cache.lengths = state.detach(), cache.lengths + advance
        return y

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> StateCache:
        """The state, in fp32 unless ``dtype`` is wider; ``capacity`` does not matter."""
        width = self.head_width * (2 if self.lrpe is not None else 1)
        return StateCache((batch_size, self.heads, width, self.head_width), device, dtype)

    def cost(self, context: int, dtype: torch.dtype = torch.bfloat16) -> Cost:
        """In training: the lower half of each chunk's products, and the state written and read once per token."""
        matrices = (5 if self.gate is not None else 4) * self.width**2
        key_width = self.width * (2 if self.lrpe is not None else 1)
        vectors = self.width if self.lrpe is not None else 0
        vectors += sum(p.numel() for p in self.norm.parameters())
        through_state = 4 * key_width * self.head_width
        within_chunk = (min(CHUNK, context) + 1) * (key_width + self.width)
        return Cost(
            parameters=matrices + vectors,
            flops_per_token=2 * matrices + through_state + within_chunk,
            decode_flops_per_token=2 * matrices + through_state,
            cache_bytes=key_width * self.head_width * max(dtype.itemsize, torch.float32.itemsize),
        )
