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
from torch import Tensor

from kernels import linear_attention
from zoo.mixers.parts.cache import StateCache
from zoo.mixers.parts.costs import linear_flops, linear_step_flops, state_bytes
from zoo.mixers.parts.heads import Call, HeadMixer
from zoo.mixers.parts.norms import checked_norm
from zoo.mixers.parts.positions import LinearizedRelativeEncoding
from zoo.mixers.registry import register

DECAYS = ("transnormer", "paper")
LRPE = ("first", "all", "none")


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
class LightningAttention(HeadMixer):
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
        super().__init__(width, heads, depth, layer, norm=checked_norm(norm), gate=gate)
        if decay not in DECAYS:
            raise ValueError(f"decay={decay!r}: expected one of {', '.join(DECAYS)}.")
        if lrpe not in LRPE:
            raise ValueError(f"lrpe={lrpe!r}: expected one of {', '.join(LRPE)}.")
        self.decay, self.algorithm = decay, algorithm
        encoded = lrpe == "all" or (lrpe == "first" and layer == 0)
        self.lrpe = LinearizedRelativeEncoding(heads, self.head_width) if encoded else None

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """One call of the kernel."""
        q, k = F.silu(q), F.silu(k)
        if self.lrpe is not None:
            q, k = self.lrpe(q, call.positions), self.lrpe(k, call.positions)
        log_decay = -lightning_slopes(self.decay, self.heads, self.layer, self.depth, q.device)
        if call.cache is not None:
            return call.cache.attend(q, k, v, log_decay, call.lengths, algorithm=self.algorithm)
        y, _ = linear_attention(q, k, v, log_decay, documents=call.documents, algorithm=self.algorithm)
        return y

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> StateCache:
        """The state, in fp32 unless ``dtype`` is wider; ``capacity`` does not matter."""
        return StateCache((batch_size, self.heads, self._key_width(), self.head_width), device, dtype)

    def mixing_flops(self, context: int) -> float:
        """The lower half of each chunk's products, and the state written and read once per token."""
        return linear_flops(self.heads, self._key_width(), self.head_width, context)

    def step_flops(self, context: int) -> float:
        """The state written and read."""
        return linear_step_flops(self.heads, self._key_width(), self.head_width)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """The state, whatever the context."""
        return state_bytes(self.heads, self._key_width(), self.head_width, dtype)

    def own_parameters(self) -> tuple[int, int]:
        """The frequencies of LRPE."""
        return 0, 0 if self.lrpe is None else self.width

    def _key_width(self) -> int:
        return self.head_width * (2 if self.lrpe is not None else 1)
