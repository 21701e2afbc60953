"""Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245): softmax attention with fewer key heads.

o_t^h = sum_{j <= t} softmax_j(q_t^h . k_j^g / sqrt(D)) v_j^g,  g = h // (H // G)
"""

from __future__ import annotations

from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.registry import register
from zoo.mixers.softmax import SoftmaxAttention


@register("gqa")
class GroupedQueryAttention(SoftmaxAttention):
    """Softmax attention with fewer key heads than query heads: by default a quarter, at least 2 if heads is even."""

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        kv_heads: KvHeads = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        gate: Gate = "none",
        rope_theta: RopeTheta = 10000.0,
        rope_fraction: RopeFraction = 1.0,
        sink_logits: bool = False,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, default_kv_heads(heads) if kv_heads is None else kv_heads, head_dim, value_dim,
            qk_norm, gate, rope_theta, rope_fraction, sink_logits,
        )  # fmt: skip


def default_kv_heads(heads: int) -> int:
    """Default number of key heads: a quarter of the heads, but at least 2 if heads is even."""
    return next(g for g in (heads // 4, 2, 1) if g > 0 and heads % g == 0 and (g > 1 or heads % 2))
