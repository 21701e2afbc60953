"""Efficient attention (Shen et al. 2018, arXiv:1812.01243), causal.

    S_t[c] = sum_{j <= t} e^{k_jc} v_j,   z_t[c] = sum_{j <= t} e^{k_jc},
    prefix    o_t = sum_c softmax(q_t)_c S_t[c] / z_t[c]
    scalar    o_t = sum_c softmax(q_t)_c S_t[c] / sum_c softmax(q_t)_c z_t[c]

The paper takes the softmax of each key feature over all positions. ``prefix`` takes it over those up to the query: the
last row equals the paper's, and the weights of a row sum to one. ``scalar``, which other implementations use, is linear
attention with the maps softmax and exp. Keys are capped: e^k is e^{30 tanh(k / 30)}.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from zoo.mixers.caches import Cache, CacheList, StateCache
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import linear_flops, linear_step_flops, state_bytes
from zoo.mixers.parts.features import UNREACHED, capped_exp
from zoo.mixers.parts.options import Gate, HeadDim, RopeTheta, ValueDim
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register

FORMS = ("prefix", "scalar")


@register("efficient")
class EfficientAttention(StateMixer):
    """Efficient attention, which takes softmax over the features of queries and over the positions of keys.

    Args:
        form: ``prefix`` (one normalizer per feature, as in the paper) or ``scalar`` (one per row).
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        rope_theta: base of the rotary frequencies, applied before softmax and exponential; None for no positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        algorithm: algorithm of the kernel: ``auto``, ``parallel``, ``chunk`` or ``scan``; all give the same result.

    Raises:
        ValueError: on values outside these, or if heads are of odd width and ``rope_theta`` is given.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        form: str = "prefix",
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        rope_theta: RopeTheta = 10000.0,
        gate: Gate = "none",
        algorithm: str = "auto",
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form={form!r}: expected one of {', '.join(FORMS)}.")
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, rope_theta=rope_theta, gate=gate
        )
        self.normalize, self.algorithm = form == "scalar", algorithm

    @property
    def normalized(self) -> bool:
        return True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        query = q.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1)
        k = capped_exp(k)
        if not self.normalize:
            query = query / self._sums(k, call)
        if call.cache is not None and not self.normalize:
            call = replace(call, cache=call.cache.parts[0])
        y = attend_linear(
            query.to(k.dtype), k, v.to(k.dtype), None, call, normalize=self.normalize, eps=UNREACHED,
            algorithm=self.algorithm,
        )  # fmt: skip
        return y.to(v.dtype)

    def _sums(self, k: Tensor, call: Call) -> Tensor:
        """``(B, T, H, D)``: sum of each feature of the keys so far, from a kernel that knows documents and padding."""
        if call.cache is not None:
            call = replace(call, cache=call.cache.parts[1])
        ones = torch.ones_like(k[..., :1])
        sums = attend_linear(ones, ones, k, None, call, algorithm=self.algorithm)
        return sums.clamp(min=UNREACHED)  # 0 where a row has had padding only

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Cache:
        """The sums of weighted values, and for ``prefix`` those of weights per feature, in fp32 or wider."""
        values = super().new_cache(batch_size, capacity, device, dtype)
        if self.normalize:
            return values
        return CacheList([values, StateCache((batch_size, self.heads, 1, self.head_dim), device, dtype)])

    def mixing_flops(self, context: int) -> float:
        sums = 0 if self.normalize else linear_flops(self.heads, 1, self.head_dim, context, self.algorithm)
        return super().mixing_flops(context) + sums

    def step_flops(self, context: int) -> float:
        sums = 0 if self.normalize else linear_step_flops(self.heads, 1, self.head_dim)
        return super().step_flops(context) + sums

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        sums = 0 if self.normalize else state_bytes(self.heads, 1, self.head_dim, dtype)
        return super().cache_bytes(context, dtype) + sums
