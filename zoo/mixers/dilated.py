"""Dilated attention: queries read every r-th key, with a dilation r per head.

    o_t = sum_{j in R_t} softmax_j(q_t . k_j / sqrt(D)) v_j

    window:  R_t = {t - i r, 0 <= i < w}                      Longformer, Beltagy et al. 2020 (arXiv:2004.05150)
    atrous:  R_t = {j <= t: (t - j) mod r = 0}                atrous self-attention, Su 2019 (kexue.fm/archives/6853)
    strided: R_t = {t - r < j <= t} and {(t - j) mod r = 0}   Sparse Transformer, Child et al. 2019 (arXiv:1904.10509)

The two steps of the Sparse Transformer are one softmax here. With the first two kinds, tokens of different residue
classes modulo r never meet, in no layer, so one of the heads must have a dilation of 1. Positions are those of the
whole sequence.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.mixers.caches import KeyValueCache, RingCache, View
from zoo.mixers.parts.attending import attend
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.dilation import Dilation, by_rate, used_rates
from zoo.mixers.parts.heads import HeadMixer
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeTheta, ValueDim
from zoo.mixers.registry import register

RATES = {"window": [1, 4], "atrous": [1, 4], "strided": [128]}


@register("dilated")
class DilatedAttention(HeadMixer):
    """Softmax attention over keys at a fixed distance from each other.

    Args:
        kind: ``window``, ``atrous`` or ``strided``.
        window: number of keys that a query reads with kind ``window``, its own included; the other kinds have no limit.
        dilation: distance r between keys, or a list of them that the key heads take in turn (the query heads of each
            key head, where the list is longer than there are key heads). None for 1, 4, or for 128 with kind
            ``strided``. Entries for which no head is left are named in a warning.
        kv_heads: number of key and value heads G, a divisor of the heads; None for one per query head.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies; None for no positions.

    Raises:
        ValueError: on a kind, a window or a dilation that does not exist, and if no dilation of ``window`` or
            ``atrous`` is 1, so that no layer would ever reach the token before.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        kind: str = "window",
        window: int = 256,
        dilation: list[int] | int | None = None,
        kv_heads: KvHeads = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        gate: Gate = "none",
        rope_theta: RopeTheta = 10000.0,
    ) -> None:
        super().__init__(
            width,
            heads,
            depth,
            layer,
            head_dim=head_dim,
            value_dim=value_dim,
            kv_heads=kv_heads,
            qk_norm=qk_norm,
            rope_theta=rope_theta,
            gate=gate,
        )
        if kind not in RATES:
            raise ValueError(f"kind={kind!r}: expected one of {', '.join(RATES)}.")
        if window < 1:
            raise ValueError(f"window={window}: expected at least 1, which is the query's own key.")
        rates = _checked_rates(kind, RATES[kind] if dilation is None else dilation, self.kv_heads, heads)
        taps = window if kind == "window" else None
        #: key head g has that of number g modulo their count; if they are fewer, query head i of each has that of i
        self.dilations = [Dilation(rate, taps, near=rate if kind == "strided" else 1) for rate in rates]
        spans = [d.span for d in self.dilations]
        self.span = max((s for s in spans if s is not None), default=None)

    @property
    def normalized(self) -> bool:
        return True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        return attend(q, k, v, call, self._whole, self._step)

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, *, documents: Tensor | None = None) -> Tensor:
        return by_rate(self.dilations, lambda d, *heads: d.attend(*heads, documents), q, k, v)

    def _step(self, q: Tensor, view: View) -> Tensor:
        def step(d: Dilation, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return d.step(q[:, 0], k, v, view.lengths)[:, None]

        return by_rate(self.dilations, step, q[:, None], view.keys, view.values)[:, 0]

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KeyValueCache:
        """Returns a cache of keys and values of all tokens, or of as many as the widest window spans."""
        how = capacity or 0, self.kv_heads, self.head_dim, device, dtype, self.value_dim
        if self.span is None:
            return KeyValueCache(batch_size, *how)
        return RingCache(batch_size, self.span, 0, *how)

    def reads(self, context: int, block: int = 1) -> float:
        return self._mean([d.pairs(context, block) for d in self.dilations])

    def mixing_flops(self, context: int) -> float:
        return self.pair_flops * self.reads(context) / context

    def step_flops(self, context: int) -> float:
        return self.pair_flops * self._mean([d.reads(context + 1) for d in self.dilations])

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        held = context if self.span is None else min(context, self.span)
        return held * self.token_numbers * dtype.itemsize

    def step_bytes(self, context: int, dtype: torch.dtype) -> float:
        shared = super().step_bytes(context, dtype)
        return shared if len(self.dilations) <= self.kv_heads else shared * self.heads / self.kv_heads

    def _mean(self, pairs: list[int]) -> float:
        """Of all heads, from what a head of each dilation reads."""
        turns = self.kv_heads if len(pairs) <= self.kv_heads else self.heads // self.kv_heads
        return sum(pairs[i % len(pairs)] for i in range(turns)) / turns


def _checked_rates(kind: str, dilation: list[int] | int, groups: int, heads: int) -> list[int]:
    """The rates that are in use."""
    rates = used_rates(dilation, max(groups, heads // groups), heads, groups)
    if kind != "strided" and min(rates) > 1:  # sums of rates over 1 never make 1
        raise ValueError(
            f"dilation={dilation!r} gives {heads} heads rates over 1: with kind={kind!r} no layer would ever "
            f"reach the token before. Mix in a rate of 1, or take kind='strided'."
        )
    return rates
