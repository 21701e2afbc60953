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
from zoo.mixers.parts.heads import Call, HeadMixer
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.registry import register


@register("softmax")
class SoftmaxAttention(HeadMixer):
    """Softmax attention.

    Args:
        kv_heads, head_dim, value_dim, qk_norm, gate, rope_theta, rope_fraction: see :mod:`zoo.mixers.parts.options`.
        sink_logits: a learned logit per head that takes weight and gives nothing, so that a head may attend to nothing.

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
        """Unless a sink takes weight."""
        return self.sink_logits is None

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """One call of the kernel."""
        return attend_softmax(q, k, v, call, sink_logits=self.sink_logits)

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KeyValueCache:
        """Keys and values; grows beyond ``capacity``."""
        return KeyValueCache(batch_size, capacity or 0, self.kv_heads, self.head_dim, device, dtype, self.value_dim)

    def mixing_flops(self, context: int) -> float:
        """Every query reads (context + 1) / 2 keys on average."""
        return self.pair_flops * (context + 1) / 2

    def step_flops(self, context: int) -> float:
        """The next query reads context + 1 keys."""
        return self.pair_flops * (context + 1)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """Keys and values of all tokens."""
        return context * self.token_numbers * dtype.itemsize

    def own_parameters(self) -> tuple[int, int]:
        """The learned logits."""
        return 0, 0 if self.sink_logits is None else self.heads
