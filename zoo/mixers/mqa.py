"""Multi-query attention (Shazeer 2019, arXiv:1911.02150): softmax attention with one key head for all queries.

o_t^h = sum_{j <= t} softmax_j(q_t^h . k_j / sqrt(D)) v_j
"""

from __future__ import annotations

from zoo.mixers.registry import register
from zoo.mixers.softmax import SoftmaxAttention


@register("mqa")
class MultiQueryAttention(SoftmaxAttention):
    """Softmax attention with ``kv_heads`` = 1."""

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        qk_norm: bool = False,
        gate: str = "none",
        rope_theta: float | None = 10000.0,
        rope_fraction: float = 1.0,
        sink_logits: bool = False,
    ) -> None:
        super().__init__(width, heads, depth, layer, 1, qk_norm, gate, rope_theta, rope_fraction, sink_logits)
