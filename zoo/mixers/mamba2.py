"""Mamba-2: state space duality with its convolution, its skip and its gated norm (Dao and Gu 2024, arXiv:2405.21060).

    S_t = exp(-A_h d_t) S_{t-1} + d_t B_t x_t^T,   o_t = C_t S_t + D_h x_t,   y_t = W_o norm(o_t * SiLU(W_z u_t)),
    x, B, C = SiLU(conv(W u) + b),   d_t = softplus(W_d u_t + b_h)

for inputs u; B and C, the keys and queries, are shared by all heads of a group. The core, with keys and queries for
each head and without the rest, is ``ssd``. Published: values of 2 C in all, keys of 128, one group, a convolution of 4
with a bias; A between 1 and 16, softplus(b_h) between 0.001 and 0.1, D of 1.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.caches import ConvolvedCache
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.decays import StepDecay, wide
from zoo.mixers.parts.heads import share_of_width
from zoo.mixers.parts.norms import rms_norm
from zoo.mixers.parts.options import Conv, HeadDim, KvHeads, NormEps, ValueDim
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.parts.short_conv import tail_of
from zoo.mixers.registry import register


@register("mamba2")
class Mamba2(StateMixer):
    """The layer of Mamba-2.

    Args:
        kv_heads: groups of heads that share keys and queries.
        head_dim: numbers D of each query and key, the size of the state; None for width / heads.
        value_dim: numbers E of each value; None for 2 width / heads.
        conv: tokens of the short convolution of queries, keys and values; 0 for none.
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
        kv_heads: KvHeads = 1,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        conv: Conv = 4,
        norm_eps: NormEps = 1e-5,
    ) -> None:
        groups = heads if kv_heads is None else kv_heads
        if value_dim is None:
            value_dim = 2 * share_of_width(width, heads, option="value_dim")
        super().__init__(
            width, heads, depth, layer, kv_heads=groups, query_heads=groups, value_heads=heads, head_dim=head_dim,
            value_dim=value_dim, conv=conv, conv_bias=True,
        )  # fmt: skip
        self.modulation = nn.Linear(width, heads * self.value_dim, bias=False)
        self.norm_weight, self.norm_eps = nn.Parameter(torch.ones(heads * self.value_dim)), norm_eps
        self.decay = StepDecay(width, heads)
        self.skip = nn.Parameter(torch.ones(heads))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """One call of the kernel, and the skip."""
        if self.conv is None:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        log_decay, step = self.decay(call.x)
        q, k = (x.repeat_interleave(self.heads // self.kv_heads, 2) for x in (q, k))
        y = attend_linear(q, (wide(k) * step[..., None]).to(v.dtype), v, log_decay, call)
        return wide(y) + wide(self.skip)[:, None] * wide(v)

    def finish(self, y: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The gate, the norm over the heads of a group, and the projection."""
        gated = wide(y).flatten(-2) * F.silu(wide(self.modulation(x)))
        normed = rms_norm(gated.unflatten(-1, (self.kv_heads, -1)), None, self.norm_eps).flatten(-2)
        out: Tensor = self.out((normed * wide(self.norm_weight)).to(dtype))
        return out

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ConvolvedCache:
        """The state, in fp32 unless ``dtype`` is wider, and the last inputs of the convolution."""
        shape = (batch_size, self.heads, self.head_dim, self.value_dim)
        return ConvolvedCache(shape, tail_of(self.conv), device, dtype)

    def own_parameters(self) -> tuple[int, int]:
        """The projections to the gate and to the decay; the norm, the skip, the decay's bias and rate."""
        matrices = self.modulation.weight.numel() + self.decay.projection.weight.numel()
        return matrices, self.norm_weight.numel() + 3 * self.heads

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """The state and the convolution's inputs, whatever the context."""
        return super().cache_bytes(context, dtype) + math.prod(tail_of(self.conv)) * dtype.itemsize
