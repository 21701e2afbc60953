"""Mamba-3: keys and values of two tokens at a time, and positions that the tokens choose (2026, arXiv:2603.15569).

    S_t = a_t S_{t-1} + (1 - l_t) d_t a_t k_{t-1} v_{t-1}^T + l_t d_t k_t v_t^T,   o_t = q_t S_t + D_h v_t,
    y_t = W_o (o_t * SiLU(W_z x_t)),   k_t = turn(norm(W_k x_t) + b_h, phi_t),   q_t = turn(norm(W_q x_t) + c_h, phi_t),
    d_t = softplus(W_d x_t + e_h),   a_t = exp(-d_t max(softplus(W_a x_t), 0.0001)),   l_t = sigmoid(W_l x_t),
    phi_t = phi_{t-1} + pi tanh(W_phi x_t) d_t

The rule of the trapezoid takes the place of a convolution. With key and value of the token before and a weight of
a_t (l_{t-1} d_{t-1} + (1 - l_t) d_t), the state without a token's own write is one call of the kernel; that write is
added. Keys and queries are shared by the heads of a group, b, c, D and the angles are those of a head. Of a key, the
first half turns, in pairs of neighbors. With l of 1, no angles, b and c of 0 it is the core of Mamba-2. Published:
values of 2 C in all, keys of 128; b, c and D of 1, softplus(e) between 0.001 and 0.1; rank 1 (SISO) is what is here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.caches import TrapezoidCache
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.decays import inverse_softplus, spread, wide
from zoo.mixers.parts.heads import share_of_width
from zoo.mixers.parts.norms import RMSNorm
from zoo.mixers.parts.options import HeadDim, KvHeads, ValueDim
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register
from zoo_kernels.documents import document_starts

FLOOR = 1e-4  # of the rate of decay
NORM_EPS = 1e-5  # in the norms of queries and keys, as published


@register("mamba3")
class Mamba3(StateMixer):
    """The layer of Mamba-3, of rank 1.

    Args:
        kv_heads: groups of heads that share keys and queries.
        head_dim: numbers D of each query and key, the size of the state, a multiple of 4; None for width / heads.
        value_dim: numbers E of each value; None for 2 width / heads.

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
    ) -> None:
        groups = heads if kv_heads is None else kv_heads
        if value_dim is None:
            value_dim = 2 * share_of_width(width, heads, option="value_dim")
        super().__init__(
            width, heads, depth, layer, kv_heads=groups, query_heads=groups, value_heads=heads, head_dim=head_dim,
            value_dim=value_dim, qk_norm=True, gate="silu",
        )  # fmt: skip
        if self.head_dim % 4:
            whose = "width / heads" if head_dim is None else "head_dim"
            raise ValueError(
                f"{whose}={self.head_dim}: expected a multiple of 4, half of which turns in pairs; set head_dim to one."
            )
        self.query_norm, self.key_norm = (RMSNorm(self.head_dim, NORM_EPS) for _ in range(2))
        self.choices = nn.Linear(width, 3 * heads, bias=False)  # of d, a and l
        self.angles = nn.Linear(width, self.head_dim // 4, bias=False)
        self.step_bias = nn.Parameter(inverse_softplus(1e-3 * 100 ** spread(heads)).float())
        self.key_bias = nn.Parameter(torch.ones(heads, self.head_dim))
        self.query_bias = nn.Parameter(torch.ones(heads, self.head_dim))
        self.skip = nn.Parameter(torch.ones(heads))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """One call of the kernel on keys and values of the tokens before, and each token's own write."""
        chosen = wide(self.choices(call.x)).unflatten(-1, (3, -1))
        step = F.softplus(chosen[:, :, 0] + wide(self.step_bias))
        log_decay = -step * F.softplus(chosen[:, :, 1]).clamp(min=FLOOR)
        part = chosen[:, :, 2].sigmoid()
        if (real := call.real()) is not None:
            step, log_decay, part = (x.masked_fill(~real[..., None], 0) for x in (step, log_decay, part))
        angle = self._angle(math.pi * torch.tanh(wide(self.angles(call.x)))[:, :, None] * step[..., None], call)
        q, k = (
            _turned(wide(x).repeat_interleave(self.heads // self.kv_heads, 2) + wide(bias), angle)
            for x, bias in ((q, self.query_bias), (k, self.key_bias))
        )
        written = part * step
        k_before, v_before, written_before = self._before(k, wide(v), written, angle, call)
        weight = log_decay.exp() * (written_before + (1 - part) * step)
        like = v.dtype
        y = attend_linear(q.to(like), (k_before * weight[..., None]).to(like), v_before.to(like), log_decay, call)
        own = written * (q * k).sum(-1) + wide(self.skip)
        return wide(y) + own[..., None] * wide(v)

    def _angle(self, turned: Tensor, call: Call) -> Tensor:
        """Sum of the angles ``(B, T, H, D / 4)`` in the document so far, in fp64."""
        total = turned.double().cumsum(1)
        if call.documents is not None:
            starts = document_starts(call.documents)[..., None, None].expand_as(total)
            total = total - (total - turned).gather(1, starts)
        if call.cache is not None:
            total = total + call.cache.angle[:, None]
        return total.remainder(2 * math.pi)

    def _before(
        self, k: Tensor, v: Tensor, written: Tensor, angle: Tensor, call: Call
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Key, value and weight of the token before each in its document; zeros before the first."""
        if call.cache is not None:
            return call.cache.shifted(k, v, written, angle, call.lengths)
        first = torch.zeros(k.shape[:2], dtype=torch.bool, device=k.device)
        first[:, 0] = True
        if call.documents is not None:
            first[:, 1:] = call.documents[:, 1:] != call.documents[:, :-1]
        k, v, written = (
            x.roll(1, 1).masked_fill(first.view(*first.shape, *(1,) * (x.dim() - 2)), 0) for x in (k, v, written)
        )
        return k, v, written

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TrapezoidCache:
        """The state, the last key, value and weight, and the angles, in fp32 unless ``dtype`` is wider."""
        return TrapezoidCache((batch_size, self.heads, self.head_dim, self.value_dim), device, dtype)

    def own_parameters(self) -> tuple[int, int]:
        """The projections to steps, decays, weights and angles; biases and the skip."""
        matrices = self.choices.weight.numel() + self.angles.weight.numel()
        return matrices, 2 * self.heads * (1 + self.head_dim)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """The state, and what is known of the last token, whatever the context."""
        numbers = self.heads * (self.head_dim + self.value_dim + 1 + self.head_dim // 4)
        return super().cache_bytes(context, dtype) + numbers * torch.promote_types(dtype, torch.float32).itemsize


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """``x (B, T, H, D)`` with the neighbors of its first half turned by ``angle (B, T, H, D / 4)``."""
    cos, sin = (f(angle).to(x.dtype) for f in (torch.cos, torch.sin))
    turning, rest = x.chunk(2, -1)
    even, odd = turning.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)
    return torch.cat([turned, rest], -1)
