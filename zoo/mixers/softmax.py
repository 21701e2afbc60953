"""Exact softmax attention with any number of key heads.

    o_t = sum_{j <= t} softmax_j(q_t . k_j / sqrt(D)) v_j;  query head h reads key head h // (H // G).

Multi-head: Vaswani et al. 2017 (arXiv:1706.03762). Multi-query, G = 1: Shazeer 2019 (arXiv:1911.02150).
Grouped-query: Ainslie et al. 2023 (arXiv:2305.13245). Learned sinks: gpt-oss (OpenAI 2025, arXiv:2508.10925).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.mixers.caches import KeyValueCache
from zoo.mixers.parts.attending import attend_softmax
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.heads import HeadMixer
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.registry import register


@register("softmax")
class SoftmaxAttention(HeadMixer):
    """Exact softmax attention with any number of key heads.

    Args:
        kv_heads: number of key and value heads G, a divisor of the heads; None for one per query head.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies; None for no positions.
        rope_fraction: share of each head that is rotated; the remaining part has no position.
        sink_logits: learn a logit per head that takes weight and contributes no value, so that a head may attend to
            nothing.

    Raises:
        ValueError: if heads is not divisible by kv_heads, or the rotated part of a head is odd.
    """

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
            width, heads, depth, layer, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim, qk_norm=qk_norm,
            rope_theta=rope_theta,
            rope_fraction=rope_fraction, gate=gate,
        )  # fmt: skip
        self.sink_logits = nn.Parameter(torch.zeros(heads)) if sink_logits else None

    @property
    def normalized(self) -> bool:
        """Whether weights sum to one: always, except with sink logits, which take weight."""
        return self.sink_logits is None

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        return attend_softmax(q, k, v, call, sink_logits=self.sink_logits)

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KeyValueCache:
        """Returns a cache of keys and values of all tokens, which grows beyond ``capacity``."""
        return KeyValueCache(batch_size, capacity or 0, self.kv_heads, self.head_dim, device, dtype, self.value_dim)

    def mixing_flops(self, context: int) -> float:
        return self.pair_flops * (context + 1) / 2

    def step_flops(self, context: int) -> float:
        return self.pair_flops * (context + 1)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        return context * self.token_numbers * dtype.itemsize

    def own_parameters(self) -> tuple[int, int]:
        return 0, 0 if self.sink_logits is None else self.heads
