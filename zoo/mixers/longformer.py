"""Longformer for decoders: softmax attention over a window, which may be dilated, and global tokens.

    o_t = sum_{j in S_t} softmax_j(q_t . k_j / sqrt(D)) v_j
    S_t = {t - i r, 0 <= i < w} and {j <= t: j is global}: one softmax, each key once
    S_t = {j <= t} for a global t with ``global_rows=full``

Beltagy et al. 2020 (arXiv:2004.05150), an encoder. Here a global token reads no later tokens: those at the start of a
document collect nothing, later ones summarize what precedes them. The paper's second projections of queries, keys and
values for the rows of global tokens (3 C^2 more parameters) are left out.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from zoo.mixers.caches import GlobalCache, GlobalView, RingCache
from zoo.mixers.caches.global_tokens import GlobalTokens, flagged, gather_tokens
from zoo.mixers.parts.attending import attend_softmax
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import window_pairs
from zoo.mixers.parts.dilation import Dilation, attend_residues, by_rate, used_rates
from zoo.mixers.parts.global_attention import attend_far, replace_rows
from zoo.mixers.parts.heads import HeadMixer
from zoo.mixers.parts.merge import merge
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.registry import register
from zoo_kernels import softmax_attention, softmax_attention_step
from zoo_kernels.documents import document_positions

ROWS = ("sparse", "full")
ALL = 1 << 62  # tokens: more than there are
WIDEST = 40  # powers of two: a window of so many tokens is an oversight


@register("longformer")
class LongformerAttention(HeadMixer):
    """Softmax attention over a window and global tokens.

    Args:
        window: number of keys of a query beside the global ones, its own included, in the first layer.
        window_growth: growth of the window: layer l has ``round(window * window_growth ** l)``.
        global_tokens: number of first tokens of a document that are global.
        global_every: tokens at the positions n - 1, 2n - 1, ... are global too; None for none.
        separators: tokens in ``separators`` are global too.
        global_rows: ``sparse``: a global token reads what others read; ``full``: it reads all earlier tokens, which all
            have to be cached.
        dilation: distance r between the keys of the window, or a list of them that the key heads take in turn; None for
            1. Heads whose distances have a common divisor reach the tokens between through global tokens alone.
        kv_heads: number of key and value heads G, a divisor of the heads; None for one per query head.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies; None for no positions.
        rope_fraction: share of each head that is rotated; the remaining part has no position.

    Raises:
        ValueError: on numbers or choices that do not exist, or heads that do not fit together.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        window: int = 256,
        window_growth: float = 1.0,
        global_tokens: int = 16,
        global_every: int | None = None,
        separators: bool = False,
        global_rows: str = "sparse",
        dilation: list[int] | int | None = None,
        kv_heads: KvHeads = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        gate: Gate = "none",
        rope_theta: RopeTheta = 10000.0,
        rope_fraction: RopeFraction = 1.0,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim, qk_norm=qk_norm,
            rope_theta=rope_theta,
            rope_fraction=rope_fraction, gate=gate,
        )  # fmt: skip
        if global_rows not in ROWS:
            raise ValueError(f"global_rows={global_rows!r}: expected one of {', '.join(ROWS)}.")
        self.window = _window(window, window_growth, layer)
        self.uses_separators = separators
        self.tokens = GlobalTokens(global_tokens, global_every, separators)
        rates = used_rates(1 if dilation is None else dilation, self.kv_heads, heads, self.kv_heads)
        #: key head g has that of number g modulo their count
        self.near = [Dilation(rate, self.window) for rate in rates]
        self.dilated = any(near.rate > 1 for near in self.near)
        more = global_every is not None or separators
        #: global rows that the window does not serve already
        self.full = global_rows == "full" and (self.dilated or more or global_tokens > self.window)
        #: nothing but a window and the first tokens
        self.plain = not self.dilated and not more and not self.full

    @property
    def normalized(self) -> bool:
        return True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Attends to the window, to global tokens outside of it, and to all earlier tokens from global rows."""
        cache, first = call.cache, self.tokens.first
        if self.plain:
            return attend_softmax(q, k, v, call, window=self.window, sink_tokens=first)
        flags = self.tokens.flags(call.positions, call.separators)
        marked = self.tokens.separators and call.separators is not None
        if cache is None:
            return self._whole(q, k, v, flags, call.documents, fixed=not marked)
        view = cache.append(k, v, call.lengths, flags=flags, marked=marked)
        if view.in_slots:
            return self._step(cache, q[:, 0], view)[:, None]
        return self._whole(q, view.keys, view.values, view.flags, view.documents)

    def _whole(
        self, q: Tensor, k: Tensor, v: Tensor, flags: Tensor, documents: Tensor | None, fixed: bool = False
    ) -> Tensor:
        """Of the tokens flagged ``(1 or B, Tk)``; ``fixed``: by their positions, in a sequence from its start on."""
        output = by_rate(self.near, partial(self._near_and_far, flags=flags, documents=documents, fixed=fixed), q, k, v)
        if not self.full:
            return output
        served = 1 if self.dilated else self.window  # first queries of a document, which read all before them anyway
        rows = (flags & (_positions(k, documents) >= served))[:, k.shape[1] - q.shape[1] :]
        most = self.tokens.most(rows, served, k.shape[1], documents, fixed)
        return replace_rows(output, q, k, v, rows, documents, most) if most else output

    def _near_and_far(
        self, near: Dilation, q: Tensor, k: Tensor, v: Tensor, flags: Tensor, documents: Tensor | None, fixed: bool
    ) -> Tensor:
        length, start, stop = k.shape[1], 0, k.shape[1] - 1
        if near.rate == 1:  # the kernel reads the first tokens beside the window; nothing in the last window is far
            start, stop = self.tokens.first, length - self.window
            part = softmax_attention(
                q, k, v, window=self.window, sink_tokens=start, documents=documents, return_lse=True
            )
            flags = flags & (_positions(k, documents) >= start) & (torch.arange(length, device=k.device) < stop)
        else:
            part = attend_residues(q, k, v, near.rate, near.taps, documents)
        most = self.tokens.most(flags, start, stop, documents, fixed)
        return merge([part, attend_far(q, k, v, flags, near, documents, most)])[0] if most else part[0]

    def _step(self, cache: GlobalCache, q: Tensor, view: GlobalView) -> Tensor:
        if not self.full and not self.dilated:  # the cache holds what is read
            return softmax_attention_step(q, view.keys, view.values, view.lengths)
        distance, flags = cache.distances(), view.flags
        held = torch.arange(flags.shape[1], device=q.device) < view.lengths[:, None]
        always = flags
        if self.full:  # the latest token may be global itself
            always = flags | (flags & (distance == 0)).any(1, keepdim=True)

        def step(near: Dilation, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            tap = (distance >= 0) & (distance < self.window * near.rate) & (distance % near.rate == 0)
            read = (always | tap) & held
            most = int(read.sum(1).max()) if cache.marked else max(self._reads(near, n) for n in set(cache.counts))
            keys, values = (gather_tokens(x, flagged(read, most)) for x in (keys, values))
            return softmax_attention_step(q[:, 0], keys, values, read.sum(1))[:, None]

        return by_rate(self.near, step, q[:, None], view.keys, view.values)[:, 0]

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> RingCache | GlobalCache:
        """Returns a cache of the window and the global tokens, or of all tokens where global rows read them."""
        how = capacity or 0, self.kv_heads, self.head_dim, device, dtype, self.value_dim
        if self.plain:
            return RingCache(batch_size, self.window, self.tokens.first, *how)
        return GlobalCache(batch_size, self.tokens, self._reach, *how)

    @property
    def _reach(self) -> int:
        """Latest tokens that are kept."""
        return ALL if self.full else (self.window - 1) * max(near.rate for near in self.near) + 1

    def _reads(self, near: Dilation, held: int) -> int:
        """Keys that the last of ``held`` tokens reads, if none is marked."""
        t = held - 1
        if self.full and held and self.tokens.fixed(t):
            return held
        return self._sparse_reads(near, t)

    def _sparse_reads(self, near: Dilation, t: int) -> int:
        """The same where no global token reads more than others."""
        taps = min(self.window, t // near.rate + 1)
        fixed = self.tokens.count_spaced(t - (taps - 1) * near.rate, near.rate, taps)
        return self.tokens.count(0, t + 1) + taps - fixed

    def _pairs(self, near: Dilation, context: int, block: int) -> int:
        """Pairs of query and key of a head, if no token is marked."""
        fixed = [t for t in range(context) if self.tokens.fixed(t)]
        taps = sum(min(self.window, (context - 1 - g) // near.rate + 1) for g in fixed)
        pairs = near.pairs(context, block) + sum(context - g for g in fixed) - taps
        return pairs + (sum(t + 1 - self._sparse_reads(near, t) for t in fixed) if self.full else 0)

    def reads(self, context: int, block: int = 1) -> float:
        """Number of query-key pairs of a sequence, without separators, which are not known here."""
        if self.plain:
            return window_pairs(context, self.window, self.tokens.first, block)
        return self._mean([self._pairs(near, context, block) for near in self.near])

    def mixing_flops(self, context: int) -> float:
        return self.pair_flops * self.reads(context) / context

    def step_flops(self, context: int) -> float:
        """FLOPs of the next token if no separator is global; a full row where its own position is global."""
        return self.pair_flops * self._mean([self._reads(near, context + 1) for near in self.near])

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """Bytes of the window and of the global tokens that have left it, or of all tokens; separators come on top."""
        held = min(context, self._reach + self.tokens.first)
        held += self.tokens.count(self.tokens.first, context - self._reach)
        return held * self.token_numbers * dtype.itemsize

    def _mean(self, pairs: list[int]) -> float:
        """Of all heads, from what a head of each rate reads."""
        return sum(pairs[g % len(pairs)] for g in range(self.kv_heads)) / self.kv_heads


def _window(window: int, growth: float, layer: int) -> int:
    if window < 1:
        raise ValueError(f"window={window}: expected at least 1, which is the query's own key.")
    if growth <= 0:
        raise ValueError(f"window_growth={growth}: expected a factor per layer above 0.")
    if math.log2(window) + layer * math.log2(growth) > WIDEST:
        raise ValueError(
            f"window={window} and window_growth={growth} give layer {layer} more than 2^{WIDEST} keys: expected a "
            "factor near 1, it is raised to the number of the layer."
        )
    return max(round(window * growth**layer), 1)


def _positions(k: Tensor, documents: Tensor | None) -> Tensor:
    """Of the keys in their documents, ``(1 or B, Tk)``."""
    return torch.arange(k.shape[1], device=k.device)[None] if documents is None else document_positions(documents)
