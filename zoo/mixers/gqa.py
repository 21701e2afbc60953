"""Grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245): softmax attention with fewer key heads.

o_t^h = sum_{j <= t} softmax_j(q_t^h . k_j^g / sqrt(D)) v_j^g,  g = h // (H // G)
"""

from __future__ import annotations

from zoo.mixers.registry import register
from zoo.mixers.softmax import SoftmaxAttention


@register("gqa")
class GroupedQueryAttention(SoftmaxAttention):
    """Softmax attention whose ``kv_heads`` is a quarter of the heads by default, but at least 2 while heads is even."""

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        kv_heads: int | None = None,
        qk_norm: bool = False,
        gate: str = "none",
        rope_theta: float | None = 10000.0,
        rope_fraction: float = 1.0,
        sink_logits: bool = False,
    ) -> None:
        if kv_heads is None:
            kv_heads = next(g for g in (heads // 4, 2, 1) if g > 0 and heads % g == 0 and (g > 1 or heads % 2))
        super().__init__(width, heads, depth, layer, kv_heads, qk_norm, gate, rope_theta, rope_fraction, sink_logits)
