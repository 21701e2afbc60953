"""Multi-query attention (Shazeer 2019, arXiv:1911.02150): softmax attention with one key head for all queries.

o_t^h = sum_{j <= t} softmax_j(q_t^h . k_j / sqrt(D)) v_j
"""

from __future__ import annotations

from zoo.mixers.parts.options import Gate, HeadDim, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.registry import register
from zoo.mixers.softmax import SoftmaxAttention


@register("mqa")
class MultiQueryAttention(SoftmaxAttention):
    """Softmax attention with one key and value head (``kv_heads`` = 1)."""

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        gate: Gate = "none",
        rope_theta: RopeTheta = 10000.0,
        rope_fraction: RopeFraction = 1.0,
        sink_logits: bool = False,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, 1, head_dim, value_dim, qk_norm, gate, rope_theta, rope_fraction, sink_logits
        )  # fmt: skip
