"""Attention to the blocks of the past that each query scores highest (after MoBA, Lu et al. 2025, arXiv:2502.13189).

    s_tc = q_t . mean_{j in c} k_j / sqrt(D)               for finished blocks c of t's document
    P_t  = the k blocks with the highest s_tc               the earlier one of equal scores
    o_t  = sum_j softmax_j(l_tj) v_j,   l_tj = q_t . k_j / sqrt(D) + score_weight * s_tc   for j in a block c of P_t,
                                        l_tj = q_t . k_j / sqrt(D)                         for j <= t in t's own block.

A choice has no gradient; the score that is added to the logits gives it one, as keys k_j + score_weight * mean_c. With
score_weight = 0 this is MoBA's attention. Choices are made per query and per query head. `unit: token` is the exact
form that blocks approximate, P_t = the k keys j <= t of highest q_t . k_j; it is dense and serves as a reference.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from zoo.mixers.caches import BlockCache, BlockView, KeyValueCache, View
from zoo.mixers.parts.attending import attend
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import window_pairs
from zoo.mixers.parts.heads import HeadMixer
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.parts.selection import Selection, attend_blocks, attend_blocks_step, picked_blocks
from zoo.mixers.registry import register
from zoo_kernels.backend import without_autocast
from zoo_kernels.layout.block_layout import BLOCKS


@without_autocast
def attend_tokens(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, count: int) -> Tensor:
    """Attention over the ``count`` allowed keys of highest score, of equal ones the earlier: dense, a reference.

    Args:
        q: queries ``(B, Tq, H, D)``.
        k: keys ``(B, Tk, G, D)``.
        v: values ``(B, Tk, G, E)``.
        allowed: ``(1 or B, Tq, Tk)`` bool, True where a query may read a key.
        count: number of keys that a query selects.
    """
    wide, fold = torch.promote_types(q.dtype, torch.float32), q.shape[2] // k.shape[2]
    k, v = (x.to(wide).repeat_interleave(fold, 2).transpose(1, 2) for x in (k, v))
    scores = q.to(wide).transpose(1, 2) @ k.mT * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    best = scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :count]
    picked = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
    return (scores.masked_fill(~picked, -torch.inf).softmax(-1) @ v).transpose(1, 2).to(q.dtype)


class _Blocks:
    """Selection of blocks. Products are counted per head: pairs of a query with a key, and of a weight with a value."""

    def __init__(self, top_k: int, block: int, score_weight: float) -> None:
        self.how = Selection(top_k, block, score_weight)

    def whole(self, q: Tensor, k: Tensor, v: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """See :class:`Whole`."""
        return attend_blocks(q, k, v, self.how, documents)

    def step(self, q: Tensor, view: View) -> Tensor:
        """See :class:`Step`; ``view`` is a :class:`BlockView`."""
        view = cast(BlockView, view)
        means = view.sums / self.how.block
        return attend_blocks_step(q, view.keys, view.values, view.lengths, means, view.own, self.how)

    def cache(self, *arguments: Any) -> KeyValueCache:
        """An empty one; arguments as of :class:`KeyValueCache`."""
        return BlockCache(*arguments, block=self.how.block)

    def products(self, context: int) -> tuple[int, int]:
        """Of keys and of values in a sequence: all finished blocks are scored, the own block and the picks are read."""
        block, full, rest = self.how.block, context // self.how.block, context % self.how.block
        own = full * block * (block + 1) // 2 + rest * (rest + 1) // 2
        scored, picked = (picked_blocks(0, context, block, count) for count in (context, self.how.count))
        read = own + block * picked
        return scored + read, read

    def step_products(self, context: int) -> tuple[int, int]:
        """The same for the next query."""
        read = sum(self.step_keys(context))
        return context // self.how.block + read, read

    def step_keys(self, context: int) -> tuple[int, int]:
        """Keys that the next query reads: what the heads of a group share, and what each query head picks."""
        scored, before = divmod(context, self.how.block)
        return before + 1, self.how.block * min(self.how.count, scored)

    def sums(self, context: int) -> int:
        """Blocks whose sum of keys is kept."""
        return -(-context // self.how.block)


class _Tokens(_Blocks):
    """Selection of tokens, dense."""

    def whole(self, q: Tensor, k: Tensor, v: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """See :class:`Whole`."""
        time = torch.arange(k.shape[1], device=k.device)
        allowed = (time <= time[k.shape[1] - q.shape[1] :, None])[None]
        if documents is not None:
            allowed = allowed & (documents[:, k.shape[1] - q.shape[1] :, None] == documents[:, None])
        return attend_tokens(q, k, v, allowed, self.how.count)

    def step(self, q: Tensor, view: View) -> Tensor:
        """See :class:`Step`."""
        allowed = torch.arange(view.keys.shape[1], device=q.device) < view.lengths[:, None, None]
        return attend_tokens(q[:, None], view.keys, view.values, allowed, self.how.count)[:, 0]

    def cache(self, *arguments: Any) -> KeyValueCache:
        """An empty one; arguments as of :class:`KeyValueCache`."""
        return KeyValueCache(*arguments)

    def products(self, context: int) -> tuple[int, int]:
        """All tokens are scored, the picks are read."""
        return context * (context + 1) // 2, window_pairs(context, self.how.count)

    def step_keys(self, context: int) -> tuple[int, int]:
        """All are read, whatever is picked."""
        return context + 1, 0

    def step_products(self, context: int) -> tuple[int, int]:
        """All tokens are scored; the weights of those that are not picked are zeros."""
        return context + 1, context + 1

    def sums(self, context: int) -> int:
        """None."""
        return 0


UNITS: dict[str, type[_Blocks]] = {"block": _Blocks, "token": _Tokens}


@register("topk")
class TopKAttention(HeadMixer):
    """Softmax attention to the own block and the highest-scoring past ones, or to the highest-scoring tokens.

    Args:
        top_k: number of blocks that a query selects beside its own; with ``unit="token"``, of tokens.
        block: tokens of a block, 16, 32, 64 or 128; blocks count from the start of a document.
        unit: what is selected, ``block`` or ``token`` (dense, a reference).
        score_weight: factor of a block's score in the logits of its tokens; 0 leaves the selection without a gradient.
            It is ignored with ``unit="token"``, where the logits themselves select.
        kv_heads: number of key and value heads G; None for one per query head. Query heads that share a key head select
            for themselves.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies; None for no positions.
        rope_fraction: share of each head that is rotated; the remaining part has no position.

    Raises:
        ValueError: on values outside these.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        top_k: int = 8,
        block: int = 64,
        unit: str = "block",
        score_weight: float = 1.0,
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
        if unit not in UNITS:
            raise ValueError(f"unit={unit!r}: expected one of {', '.join(UNITS)}.")
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: expected at least one {unit} to pick.")
        if block not in BLOCKS:
            raise ValueError(f"block={block}: expected one of {', '.join(map(str, BLOCKS))}.")
        self.selection = UNITS[unit](top_k, block, score_weight)

    @property
    def normalized(self) -> bool:
        return True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        return attend(q, k, v, call, self.selection.whole, self.selection.step)

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KeyValueCache:
        """Returns a cache of keys, values and sums of the keys of each block, which grows beyond ``capacity``."""
        return self.selection.cache(
            batch_size, capacity or 0, self.kv_heads, self.head_dim, device, dtype, self.value_dim
        )

    def mixing_flops(self, context: int) -> float:
        return self._flops(*self.selection.products(context)) / context

    def step_flops(self, context: int) -> float:
        return self._flops(*self.selection.step_products(context))

    def step_bytes(self, context: int, dtype: torch.dtype) -> float:
        shared, picked = self.selection.step_keys(context)
        sums = self.selection.sums(context) * max(dtype.itemsize, torch.float32.itemsize)
        read = (self.head_dim + self.value_dim) * (shared * self.kv_heads + picked * self.heads)
        return read * dtype.itemsize + self.kv_heads * self.head_dim * sums

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        sums = self.selection.sums(context) * max(dtype.itemsize, torch.float32.itemsize)
        return context * self.token_numbers * dtype.itemsize + self.kv_heads * self.head_dim * sums

    def _flops(self, keys: int, values: int) -> int:
        """Of so many products of keys and of values in each head."""
        return 2 * self.heads * (self.head_dim * keys + self.value_dim * values)
