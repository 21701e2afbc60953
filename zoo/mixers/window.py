"""Sliding-window attention in which the first tokens stay visible.

    o_t = sum_{j in W_t} softmax_j(q_t . k_j / sqrt(D)) v_j,   W_t = {t - w < j <= t} and {j < s}: at most w + s keys.

Window: Beltagy et al. 2020 (arXiv:2004.05150), Jiang et al. 2023 (arXiv:2310.06825); w counts the query's own key, and
n layers see n (w - 1) + 1 tokens. Sinks, without which a model fails on text longer than its window: Xiao et al. 2023
(arXiv:2309.17453); unlike there, a sink keeps the position it had, as in training. A learned logit in their place:
gpt-oss (OpenAI 2025, arXiv:2508.10925).
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.mixers.caches import RingCache
from zoo.mixers.parts.attending import attend_softmax
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import window_pairs
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.registry import register
from zoo.mixers.softmax import SoftmaxAttention


@register("window")
class WindowAttention(SoftmaxAttention):
    """Softmax attention over a window of the latest tokens and the first tokens.

    Args:
        window: number of latest keys that a query reads, its own included.
        sink_tokens: number of first tokens of the document that stay visible.
        sink_logits: learn a logit per head that takes weight and contributes no value.
        kv_heads: number of key and value heads G, a divisor of the heads; None for one per query head.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies; None for no positions.
        rope_fraction: share of each head that is rotated; the remaining part has no position.

    Raises:
        ValueError: if window < 1 or sink_tokens < 0, and as in :class:`SoftmaxAttention`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        window: int = 256,
        sink_tokens: int = 4,
        sink_logits: bool = False,
        kv_heads: KvHeads = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        gate: Gate = "none",
        rope_theta: RopeTheta = 10000.0,
        rope_fraction: RopeFraction = 1.0,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, kv_heads, head_dim, value_dim, qk_norm, gate, rope_theta,
            rope_fraction, sink_logits,
        )  # fmt: skip
        if window < 1:
            raise ValueError(f"window={window}: expected at least 1, which is the query's own key.")
        if sink_tokens < 0:
            raise ValueError(f"sink_tokens={sink_tokens}: expected 0 or more of a document's first tokens.")
        self.window, self.sink_tokens = window, sink_tokens

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        return attend_softmax(
            q, k, v, call, window=self.window, sink_tokens=self.sink_tokens, sink_logits=self.sink_logits
        )

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> RingCache:
        """Returns a cache of the sink tokens and of the window, with memory for ``capacity`` tokens at first."""
        return RingCache(
            batch_size, self.window, self.sink_tokens, capacity or 0, self.kv_heads, self.head_dim, device, dtype,
            self.value_dim,
        )  # fmt: skip

    @property
    def window_reach(self) -> int:
        """The window."""
        return self.window

    def reads(self, context: int, block: int = 1) -> float:
        return window_pairs(context, self.window, self.sink_tokens, block)

    def mixing_flops(self, context: int) -> float:
        return self.pair_flops * self.reads(context) / context

    def step_flops(self, context: int) -> float:
        return self.pair_flops * min(context + 1, self.window + self.sink_tokens)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        return min(context, self.window + self.sink_tokens) * self.token_numbers * dtype.itemsize
