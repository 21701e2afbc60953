"""Attention over patterns of blocks: the key blocks of a query block are a rule of its own index alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo.mixers.caches import KeyValueCache, View
from zoo.mixers.parts.attending import attend
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.heads import HeadMixer
from zoo_kernels import BlockLayout, softmax_attention, softmax_attention_step
from zoo_kernels.layout.block_layout import BLOCKS

KEPT = 8  # layouts that a pattern remembers


def hashed(key: Tensor, *keys: Tensor | int) -> Tensor:
    """Hashes integer keys that broadcast into pseudo-random int64 >= 0, the same on every device.

    A counter-based generator without a state, by the finalizer of SplitMix64 (Steele et al. 2014, OOPSLA).
    """
    whole = (part if isinstance(part, Tensor) else (part + 2**63) % 2**64 - 2**63 for part in (key, *keys))
    parts = [part if isinstance(part, Tensor) else torch.full_like(key, part) for part in whole]
    return _hashed(torch.stack(torch.broadcast_tensors(*parts)))


# An operator, since compilers inline integer arithmetic: each value is used twice in every line, 2^30 times in the end.
@torch.library.custom_op("zoo::hashed", mutates_args=())
def _hashed(parts: Tensor) -> Tensor:
    state = torch.zeros_like(parts[0])
    for part in parts.unbind():
        state = (state ^ part) + -0x61C8864680B583EB  # the golden ratio as a signed number
        state = (state ^ _right(state, 30)) * -0x40A7B892E31B1A47
        state = (state ^ _right(state, 27)) * -0x6B2FB644ECCEEE15
        state = state ^ _right(state, 31)
    return _right(state, 1)


@_hashed.register_fake
def _(parts: Tensor) -> Tensor:
    return torch.empty_like(parts[0])


def _right(x: Tensor, places: int) -> Tensor:
    """Shift without the sign."""
    return (x >> places) & ((1 << (64 - places)) - 1)


@dataclass(frozen=True)
class BlockPattern:
    """Which blocks of keys each block of queries reads, per head; causal, and without duplicates.

    Attributes:
        block: tokens of a block: 16, 32, 64 or 128.
        listed: maps query blocks ``(N,)`` int64 to key blocks ``(H or 1, N, L)`` int64. Negative ones, later ones and
            duplicates are dropped. The key blocks depend on the query block only and not on the length of the sequence.
        longest: maps a query block to an upper bound of its number of key blocks, so that decoding gathers no more;
            None for the width L.

    Raises:
        ValueError: on a block size that does not exist.
    """

    block: int
    listed: Callable[[Tensor], Tensor]
    longest: Callable[[int], int] | None = None
    _layouts: dict[tuple[int, torch.device], BlockLayout] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ValueError(f"block={self.block}: expected one of {', '.join(map(str, BLOCKS))}.")

    def lists(self, blocks: Tensor) -> Tensor:
        """Returns the key blocks ``(H or 1, N, L)`` of query blocks ``(N,)``, ascending, each once, padded with -1."""
        listed, nowhere = self.listed(blocks), torch.iinfo(torch.int64).max
        listed = torch.where((listed >= 0) & (listed <= blocks[:, None]), listed, nowhere).sort(-1).values
        again = torch.zeros_like(listed, dtype=torch.bool)
        again[..., 1:] = listed[..., 1:] == listed[..., :-1]
        listed = listed.masked_fill(again, nowhere).sort(-1).values
        return listed.masked_fill(listed == nowhere, -1)

    def layout(self, length: int, device: torch.device | str) -> BlockLayout:
        """Returns the layout of ``length`` tokens; outside of compiled graphs the latest ones are cached."""
        count, device = -(-length // self.block), torch.device(device)
        if torch.compiler.is_compiling():
            return self._build(count, device)
        if (count, device) not in self._layouts:
            while len(self._layouts) >= KEPT:
                del self._layouts[next(iter(self._layouts))]
            with torch.inference_mode(False):  # what is kept may be used in training later
                self._layouts[count, device] = self._build(count, device)
        return self._layouts[count, device]

    def _build(self, count: int, device: torch.device) -> BlockLayout:
        lists = self.lists(torch.arange(count, device=device))
        return BlockLayout.from_index(lists[None, ..., :count], self.block)  # no list is longer than the sequence

    def whole(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        documents: Tensor | None = None,
        block_bias: Tensor | None = None,
        return_lse: bool = False,
    ) -> Any:
        """Attention of a sequence, or of its end, over the blocks of the pattern.

        Args:
            q: queries ``(B, Tq, H, D)``, the last of Tk tokens.
            k: keys ``(B, Tk, G, D)``.
            v: values ``(B, Tk, G, D)``.
            documents: as in :func:`zoo_kernels.softmax_attention`.
            block_bias: as in :func:`zoo_kernels.softmax_attention`.
            return_lse: as in :func:`zoo_kernels.softmax_attention`.

        Returns:
            ``(B, Tq, H, D)``, and the log-sum-exp ``(B, Tq, H)`` if ``return_lse``.
        """
        length = k.shape[1]
        if q.shape[1] < length:  # pieces of a cached sequence: a layout that also serves the next ones
            length = self.block << (-(-length // self.block) - 1).bit_length()
        layout = self.layout(length, q.device)
        return softmax_attention(
            q, k, v, layout=layout, documents=documents, block_bias=block_bias, return_lse=return_lse
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Attention of a call, see :func:`zoo.mixers.parts.attending.attend`."""
        held = None if call.cache is None else call.cache.held  # before the piece is

        def step(q: Tensor, view: View) -> Tensor:
            return self.step(q, view.keys, view.values, view.lengths, held)

        return attend(q, k, v, call, self.whole, step)

    def step(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, held: Sequence[int] | None = None
    ) -> Tensor:
        """Attention of one query per row, ``(B, H, D)``; only the blocks of the pattern are read from the caches.

        Args:
            q: queries ``(B, H, D)``.
            k_cache: keys ``(B, capacity, G, D)``.
            v_cache: values ``(B, capacity, G, D)``.
            lengths: ``(B,)`` tokens of each row, the query's own included.
            held: distinct lengths without the query, where the host knows them: blocks that no row reads are then not
                gathered.
        """
        capacity, groups = k_cache.shape[1:3]
        blocks, most = (lengths - 1) // self.block, -(-capacity // self.block)
        if held is not None and self.longest is not None:
            most = min(most, max(self.longest(tokens // self.block) for tokens in held))
        lists = self.lists(blocks)[..., :most]  # (H', B, L), what is read comes first
        valid = torch.where(lists >= 0, (lengths[:, None] - lists * self.block).clamp(max=self.block), 0).sum(-1)
        place = torch.arange(self.block, device=q.device)
        tokens = (lists.clamp(min=0)[..., None] * self.block + place).flatten(-2)[..., :capacity]
        tokens = tokens.clamp(max=capacity - 1)
        rows = torch.arange(len(q), device=q.device)[:, None]
        if len(lists) == 1:
            return softmax_attention_step(q, k_cache[rows, tokens[0]], v_cache[rows, tokens[0]], valid[0])
        heads = torch.arange(q.shape[1], device=q.device)[:, None] // (q.shape[1] // groups)
        at = rows[..., None], tokens.transpose(0, 1), heads
        keys, values = (cache[at].flatten(0, 1)[:, :, None] for cache in (k_cache, v_cache))
        output = softmax_attention_step(q.flatten(0, 1)[:, None], keys, values, valid.T.flatten())
        return output.view(*q.shape[:2], -1)

    def pairs(self, length: int) -> float:
        """Number of query-key pairs of a sequence, averaged over heads."""
        blocks = torch.arange(-(-length // self.block), device="cpu")
        lists, queries = self.lists(blocks), (length - blocks * self.block).clamp(max=self.block)[:, None]
        pairs = torch.where(lists == blocks[:, None], queries * (queries + 1) // 2, queries * self.block)
        return float((pairs * (lists >= 0)).sum()) / len(lists)

    def step_keys(self, context: int) -> int:
        """Number of keys that :meth:`step` gathers for the next token, all heads padded to the longest list."""
        if self.longest is not None:
            return min(self.longest(context // self.block) * self.block, context + 1)
        first = torch.zeros(1, dtype=torch.int64, device="cpu")
        return min(self.listed(first).shape[-1] * self.block, context + 1)


class BlockSparseMixer(HeadMixer):
    """Base of softmax attention over a pattern of blocks, which a subclass defines; the cache holds all tokens."""

    @property
    @abstractmethod
    def pattern(self) -> BlockPattern:
        """Pattern of key blocks that queries read."""

    @property
    def normalized(self) -> bool:
        return True

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        return self.pattern.attend(q, k, v, call)

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
        return self.pair_flops * self.pattern.pairs(context) / context

    def step_flops(self, context: int) -> float:
        return self.pair_flops * self.pattern.step_keys(context)

    def step_bytes(self, context: int, dtype: torch.dtype) -> float:
        first = torch.zeros(1, dtype=torch.int64, device="cpu")
        readers = self.heads if len(self.pattern.listed(first)) > 1 else self.kv_heads
        return self.step_flops(context) * readers / (2 * self.heads) * dtype.itemsize

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        return context * self.token_numbers * dtype.itemsize
