"""Log-linear attention: states of the past in blocks that double, each weighted (Guo et al. 2025, arXiv:2506.04761).

    o_t = sum_l lambda_t^(l) q_t S_t^(l),   S_t^(l) = sum of exp(g_{j+1} + .. + g_t) d_j k_j v_j^T over j in block l,
    lambda_t^(l) = softplus(L_l W_l x_t),   y_t = W_o (SiLU(W_g x_t) * norm(o_t)),   q, k, v = SiLU(conv(W x))

The past of token t is cut as the binary digits of t say: level 0 is t itself, and where digit l - 1 is 1, level l is a
block of 2^(l-1) tokens. g and d are those of Mamba-2, see ``ssd``, which this is with all lambda at 1. A level is one
call of the kernel over blocks of 2^l tokens, in which the right half reads the left. A state for each digit is kept
while decoding: log T of them. Levels count from the start of a document. Of 15 levels, as published, the last also
weighs all that are above it, where a sequence is longer. L starts at 1, the decays as those of ``mamba2``. The authors'
layer is ``mamba2`` otherwise too: it shares keys and queries, has values of 2 C and a skip, and gates before the norm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.caches import LevelCache
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import linear_flops, state_bytes
from zoo.mixers.parts.decays import StepDecay, wide
from zoo.mixers.parts.heads import HeadMixer
from zoo.mixers.parts.norms import checked_norm
from zoo.mixers.parts.options import Conv, Gate, HeadDim, Levels, NormEps, OutputNorm, ValueDim
from zoo.mixers.parts.recurrent import blank_padding
from zoo.mixers.parts.short_conv import tail_of
from zoo.mixers.registry import register
from zoo_kernels import linear_attention


@register("log_linear")
class LogLinearAttention(HeadMixer):
    """Linear attention over blocks of the past that double in length.

    Args:
        levels: levels with a weight of their own; the last is also that of all above it.
        head_dim: numbers D of each query and key; None for width / heads.
        value_dim: numbers E of each value; None for ``head_dim``.
        conv: tokens of the short convolution of queries, keys and values; 0 for none.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        norm: over all heads of the output: ``rms`` or ``srms`` (no weight).
        norm_eps: number that is added to the mean square in the norm of the output.

    Raises:
        ValueError: on values outside these.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        levels: Levels = 15,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        conv: Conv = 4,
        norm: OutputNorm = "rms",
        gate: Gate = "silu",
        norm_eps: NormEps = 1e-5,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, norm=checked_norm(norm),
            norm_eps=norm_eps, gate=gate, conv=conv,
        )  # fmt: skip
        self.decay, self.levels = StepDecay(width, heads), levels
        self.level_weight = nn.Linear(width, heads * levels, bias=False)
        self.level_scale = nn.Parameter(torch.ones(heads, levels))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """A call of the kernel for each level above the token itself, in fp32 or better."""
        if self.conv is None:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        log_decay, step = self.decay(call.x)
        weights = F.softplus(wide(self.level_scale) * wide(self.level_weight(call.x)).unflatten(-1, (self.heads, -1)))
        q, k, v = wide(q), wide(k) * step[..., None], wide(v)
        own = weights[..., 0, None] * (q * k).sum(-1, keepdim=True) * v
        cache: LevelCache | None = call.cache
        if cache is not None and q.shape[1] == 1 and call.lengths is None and not torch.is_grad_enabled():
            return own + self._step(q[:, 0], k[:, 0], v[:, 0], log_decay[:, 0], weights[:, 0], cache)[:, None]
        k, v, log_decay = blank_padding(k, v, log_decay, call)
        time, place = _places(call)
        initial = None if cache is None else cache.before(q.shape[1])
        count = _levels(q.shape[1]) if initial is None else len(initial)
        after: list[Any] = []
        y = own
        for level in range(1, count + 1):
            right = ((place >> (level - 1)) & 1).bool()[..., None, None]
            weight = weights[..., min(level, self.levels - 1), None]
            part, state = linear_attention(
                (q * weight).masked_fill(~right, 0), k.masked_fill(right, 0), v, log_decay,
                documents=(time - (place & ((1 << level) - 1))).expand(q.shape[:2]),
                initial_state=None if initial is None else initial[level - 1], return_state=cache is not None,
            )  # fmt: skip
            y = y + part
            after.append(state)
        if cache is not None:
            cache.replace(after, q.shape[1], call.lengths)
        return y

    def _step(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, weights: Tensor, cache: LevelCache) -> Tensor:
        """What one token ``(B, H, D or E)`` reads of the states, ``(B, H, E)``; then it is added to them."""
        held = cache.in_use("states")
        states = cache.decayed(log_decay)
        chosen = torch.arange(1, held + 1, device=q.device).clamp(max=self.levels - 1)
        asked = (weights[..., chosen].mT[..., None] * q[:, None]).to(states.dtype)  # (B, levels, H, D)
        y = (asked[..., None, :] @ states[:, :held])[..., 0, :].sum(1)
        cache.add(states, k.to(states.dtype)[..., None] * v.to(states.dtype)[..., None, :])
        return y.to(q.dtype)

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LevelCache:
        """States of the levels that ``capacity`` tokens have, in fp32 unless ``dtype`` is wider; it grows."""
        shape = (batch_size, self.heads, self.head_dim, self.value_dim)
        return LevelCache(shape, (capacity or 0).bit_length(), tail_of(self.conv), device, dtype)

    def own_parameters(self) -> tuple[int, int]:
        """The projections to the weights of the levels and to the decay; the scales, the decay's bias and rate."""
        matrices = self.level_weight.weight.numel() + self.decay.projection.weight.numel()
        return matrices, self.level_scale.numel() + 2 * self.heads

    def mixing_flops(self, context: int) -> float:
        """Linear attention, once for each level above the token itself."""
        return _levels(context) * linear_flops(self.heads, self.head_dim, self.value_dim, context)

    def step_flops(self, context: int) -> float:
        """Every state that is held read, and the token's own written."""
        return 2 * self.heads * self.head_dim * self.value_dim * (context.bit_length() + 1)

    def step_bytes(self, context: int, dtype: torch.dtype) -> float:
        """All that is held."""
        return self.cache_bytes(context, dtype)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """A state for each digit of the context, and the convolution's inputs."""
        tokens, numbers = tail_of(self.conv)
        one = state_bytes(self.heads, self.head_dim, self.value_dim, dtype)
        return context.bit_length() * one + tokens * numbers * dtype.itemsize


def _levels(tokens: int) -> int:
    """Levels above the token itself that a sequence of so many has, at least one."""
    return max((tokens - 1).bit_length(), 1)


def _places(call: Call) -> tuple[Tensor, Tensor]:
    """Time in the piece, and place in the document, of each token; on padding, those of the last token."""
    time = torch.arange(call.x.shape[1], device=call.x.device)[None]
    if call.lengths is None:
        return time, call.positions
    last = call.lengths.to(time)[:, None] - 1
    return time.minimum(last), call.positions.minimum(call.positions[:, :1] + last).clamp(min=0)
