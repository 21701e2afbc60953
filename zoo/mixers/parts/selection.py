"""Selected attention: every query reads its own block and the past blocks that it scores highest.

Blocks count from the start of a document; only finished ones are scored, so nothing that a query reads or selects by
depends on later tokens. Pairs of a query and a selected block are grouped by block: one call of the block-sparse kernel
then touches the selected blocks alone, forward and backward, and the parts of a query are merged by their log-sum-exp.

Letters: N finished blocks, K selected blocks of a query, S = K + 1 sequences of groups, Lq their length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.mixers.parts.gathers import Mix, Take
from zoo_kernels import softmax_attention, softmax_attention_step
from zoo_kernels.backend import without_autocast
from zoo_kernels.documents import document_positions
from zoo_kernels.layout import BlockLayout

SCORES = 1 << 26, 1 << 18  # that are compared at a time, to bound memory; on CPUs, to stay in a cache
NEVER = torch.iinfo(torch.int64).min
LOW = 0xFFFFFFFF

ROWS = 65535  # of a batch: a GPU has no more places along its third axis


@dataclass(frozen=True)
class Selection:
    """Parameters of the selection.

    Attributes:
        count: number of blocks that a query selects beside its own.
        block: tokens of a block.
        score_weight: factor of the score that is added to the logits of a selected block.
    """

    count: int
    block: int
    score_weight: float


class Finished(NamedTuple):
    """Finished blocks of all documents of a row, in order; a query may select block n if ``first <= n < last``."""

    keys: Tensor  # (B, N, block, G, D)
    values: Tensor
    first: Tensor  # (1 or B, Tq)
    last: Tensor


def picked_blocks(start: int, stop: int, block: int, count: int) -> int:
    """Number of blocks that queries at ``start <= t < stop`` select: the sum of ``min(count, t // block)``."""

    def before(length: int) -> int:
        blocks = length // block
        short = min(blocks, count)
        return block * (short * (short - 1) // 2 + (blocks - short) * count) + length % block * short

    return before(stop) - before(start)


@without_autocast
def pick(q: Tensor, means: Tensor, first: Tensor, last: Tensor, count: int) -> Tensor:
    """Selects the blocks with the highest scores ``q . mean`` in fp32, best first; of equal ones the earlier.

    It has no gradient.

    Args:
        q: queries ``(B, T, H, D)``.
        means: ``(B, N, G, D)`` mean keys of blocks, N >= 1.
        first: ``(1 or B, T)``, the first candidate of each query.
        last: ``(1 or B, T)``, the block behind the last candidate.
        count: number of blocks to select.

    Returns:
        ``(B, T, H, min(count, N))`` int64; -1 where there are fewer candidates.
    """
    batch, length, heads, width = q.shape
    wide, blocks = torch.promote_types(q.dtype, torch.float32), means.shape[1]
    query = q.detach().to(wide).transpose(1, 2).reshape(batch, means.shape[2], -1, width)
    scores = (query @ means.detach().to(wide).permute(0, 2, 3, 1)).view(batch, heads, length, blocks).float()
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32)  # one zero, not two
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    number, (first, last) = torch.arange(blocks, device=q.device), (x[:, None, :, None] for x in (first, last))
    candidates = (number >= first) & (number < last)
    ranked = ((bits.long() << 32) | (LOW - number)).masked_fill(~candidates, NEVER)
    best = ranked.topk(min(count, blocks), -1).values.transpose(1, 2)
    return torch.where(best == NEVER, -1, LOW - (best & LOW))


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, how: Selection, documents: Tensor | None = None) -> Tensor:
    """Attention over the own block, causally, and the selected ones, in one softmax.

    Args:
        q: queries ``(B, Tq, H, D)``, the last of Tk tokens.
        k: keys ``(B, Tk, G, D)``.
        v: values ``(B, Tk, G, E)``.
        how: parameters of the selection.
        documents: ``(B, Tk)`` ids of packed documents, or None.

    Returns:
        ``(B, Tq, H, E)`` in the dtype of q.
    """
    output, lse = _own_block(q, k, v, how.block, documents)
    if k.shape[1] <= how.block:
        return output
    finished = _finished(k, v, q.shape[1], how.block, documents)
    keys = finished.keys.to(torch.promote_types(k.dtype, torch.float32))
    means = keys.mean(2)
    if how.score_weight:
        finished = finished._replace(keys=(keys + how.score_weight * means[:, :, None]).to(k.dtype))
    offset = k.shape[1] - q.shape[1]
    picks = _pick_all(q, means, finished, how, offset)
    most = picked_blocks(offset, k.shape[1], how.block, how.count)
    others, lse_of_picks, groups = _attend_picked(q, finished, picks, k.shape[1], most)
    weights = torch.cat([lse[..., None], lse_of_picks], -1).softmax(-1)
    mixed = Mix.apply(others, weights[..., 1:].flatten(0, 2), groups.places, groups.pairs).view(output.shape)
    mixed = mixed + weights[..., :1] * output
    return mixed.to(q.dtype)


def attend_blocks_step(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, means: Tensor, own: int, how: Selection
) -> Tensor:
    """Selected attention of one query per row, ``(B, H, D)`` -> ``(B, H, E)``. It has no gradient.

    Args:
        q: queries ``(B, H, D)``.
        k_cache: keys ``(B, capacity, G, D)``.
        v_cache: values ``(B, capacity, G, E)``.
        lengths: ``(B,)`` tokens in each row, the query's own included.
        means: ``(B, N, G, D)`` mean keys of the finished blocks; N of the longest row.
        own: upper bound of the tokens of the own block up to the query.
        how: parameters of the selection.
    """
    batch, heads, _ = q.shape
    last, block = lengths - 1, how.block
    count = min(how.count, means.shape[1])
    row = torch.arange(batch, device=q.device)[:, None, None]
    group = torch.arange(heads, device=q.device)[:, None] // (heads // k_cache.shape[2])
    place = torch.arange(own + count * block, device=q.device) - (last % block + 1)[:, None, None]  # own tokens first
    at = (last[:, None, None] + 1 + place).expand(-1, heads, -1)
    bias: Any = 0
    if count:
        none = torch.zeros_like(last)[:, None]
        picks = pick(q[:, None], means, none, (last // block)[:, None], count)[:, 0].clamp(min=0)
        picks = picks.gather(-1, (place.clamp(min=0) // block).clamp(max=count - 1).expand(-1, heads, -1))
        at = torch.where(place < 0, at, picks * block + place % block)
        bias = means[row, picks, group] * (how.score_weight * (place >= 0))[..., None]
    at = at.clamp(max=k_cache.shape[1] - 1)
    keys, values = k_cache[row, at, group] + bias, v_cache[row, at, group]
    seen = last % block + 1 + (last // block).clamp(max=count) * block
    keys, values = (x.to(q.dtype).flatten(0, 1)[:, :, None] for x in (keys, values))  # each head has its own
    return softmax_attention_step(q.flatten(0, 1)[:, None], keys, values, seen.repeat_interleave(heads)).view(
        batch, heads, -1
    )


def _own_block(q: Tensor, k: Tensor, v: Tensor, block: int, documents: Tensor | None) -> tuple[Tensor, Tensor]:
    """Causal attention inside the blocks: output ``(B, Tq, H, E)`` and log-sum-exp ``(B, Tq, H)``."""
    length = k.shape[1]
    if documents is None and q.shape[1] == length:
        padded = [F.pad(x, (0, 0, 0, 0, 0, -length % block)) for x in (q, k, v)]
        folded = zip(*(x.reshape(-1, block, *x.shape[2:]).split(ROWS) for x in padded))
        parts = zip(*(softmax_attention(*some, return_lse=True) for some in folded))
        output, lse = (torch.cat(x).reshape(q.shape[0], -1, *x[0].shape[2:])[:, :length] for x in parts)
        return output, lse
    place = torch.arange(length, device=q.device)[None] if documents is None else document_positions(documents)
    blocks = (place % block == 0).cumsum(1).expand(k.shape[:2])
    parts = softmax_attention(q, k, v, window=block, documents=blocks, return_lse=True)
    return parts[0], parts[1]


def _finished(k: Tensor, v: Tensor, queries: int, block: int, documents: Tensor | None) -> Finished:
    """A finished block has tokens of its own, so that there are at most Tk // block whatever the documents are."""
    batch, length = k.shape[:2]
    count, time = length // block, torch.arange(length, device=k.device)[None]
    if documents is None:
        keys, values = (x[:, : count * block].unflatten(1, (count, block)) for x in (k, v))
        last = time[:, length - queries :] // block
        return Finished(keys, values, torch.zeros_like(last), last)
    place = document_positions(documents)
    ends = (place + 1) % block == 0
    before = ends.cumsum(1)  # blocks finished up to each token
    begin = torch.zeros_like(before[:, : count + 1])
    begin = begin.scatter(1, torch.where(ends, before - 1, count), (time - block + 1).expand(batch, -1))
    at = (begin[:, :count, None] + torch.arange(block, device=k.device)).clamp(min=0)
    row = torch.arange(batch, device=k.device)[:, None, None]
    first = (before - (place + 1) // block)[:, length - queries :]
    return Finished(k[row, at], v[row, at], first, first + place[:, length - queries :] // block)


def _pick_all(q: Tensor, means: Tensor, finished: Finished, how: Selection, offset: int) -> Tensor:
    """:func:`pick` for a slice of the queries at a time, among the blocks that are finished before its end."""
    batch, length, heads, _ = q.shape
    count, parts = min(how.count, means.shape[1]), []
    step = max(SCORES[q.device.type == "cpu"] // (batch * heads * means.shape[1]), how.block)
    for start in range(0, length, step):
        some = slice(start, min(start + step, length))
        blocks = max((offset + some.stop - 1) // how.block, 1)
        part = pick(q[:, some], means[:, :blocks], finished.first[:, some], finished.last[:, some], count)
        parts.append(F.pad(part, (0, count - part.shape[-1]), value=-1))
    return torch.cat(parts, 1)


class _Groups(NamedTuple):
    """Pairs of a query and a picked block in groups of one head and one block; row 0 of each head is nobody's.

    The groups of a head are dealt to S = K + 1 sequences, so that each can lie behind its block, where the kernel wants
    queries: the blocks from c on have at most S groups for each block behind c.
    """

    queries: Tensor  # (B * Lq * H * S,) row of q (B, Tq, H); 0 where there is no pair
    pairs: Tensor  # (B * Lq * H * S,) its pair, counted in (B, Tq, H, K); -1 where there is none
    places: Tensor  # (B * Tq * H, K) where each pair is
    layout: BlockLayout


def _group(picks: Tensor, tokens: int, block: int, most: int) -> _Groups:
    """Groups ``block`` pairs at a time, the last blocks first, from the end of the sequences on.

    Args:
        picks: selected blocks ``(B, Tq, H, K)``.
        tokens: number of keys Tk.
        block: tokens of a block, and pairs of a group.
        most: upper bound of the pairs of a head, so that the host does not wait for the device.
    """
    batch, length, heads, count = picks.shape
    blocks, fold, device = -(-tokens // block), count + 1, picks.device
    rows = 1 - (-min(most, blocks - 1 + most // block) // fold)
    size = rows * block * fold
    keys = torch.where(picks < 0, blocks, blocks - 1 - picks).transpose(1, 2).flatten(2)  # (B, H, Tq * K), from the end
    ordered, order = keys.sort(dim=-1, stable=True)
    counts = keys.new_zeros(batch, heads, blocks + 1).scatter_add(-1, keys, torch.ones_like(keys))
    ends = -(-counts // block)[..., :blocks].cumsum(-1)
    begin = F.pad(ends, (1, 0))
    rank = torch.arange(keys.shape[-1], device=device) - (counts.cumsum(-1) - counts).gather(-1, ordered)
    group = begin.gather(-1, ordered) + rank // block
    place = ((rows - 1 - group // fold) * block + rank % block) * fold + group % fold
    place = torch.where(ordered < blocks, place, 0)
    pair = torch.full((batch, heads, size), -1, device=device).scatter(-1, place, order)
    pair[..., 0] = -1
    place = torch.zeros_like(order).scatter(-1, order, place).view(batch, heads, length, count).transpose(1, 2)
    row, head = torch.arange(batch, device=device).view(-1, 1, 1, 1), torch.arange(heads, device=device)[:, None]
    pair = pair.view(batch, heads, -1, fold).transpose(1, 2)
    queries = (row * length + pair.clamp(min=0) // count) * heads + head
    pairs = torch.where(pair < 0, -1, queries * count + pair % count)
    places = ((row * rows * block + place // fold) * heads + head) * fold + place % fold
    layout = _layout(ends, rows, fold, block)
    return _Groups(queries.flatten(), pairs.flatten(), places.reshape(-1, count), layout)


def _layout(ends: Tensor, rows: int, fold: int, block: int) -> BlockLayout:
    """Each group lists its block; ``ends (B, H, blocks)`` counts groups from the last block on."""
    batch, heads, blocks = ends.shape
    number = torch.arange(rows * fold, device=ends.device).expand(batch, heads, -1).contiguous()
    key = blocks - 1 - torch.searchsorted(ends, number, right=True)
    row, head = (torch.arange(n, device=ends.device) for n in (batch, heads))
    at = row[:, None, None], head[:, None] * fold + number % fold, blocks - 1 - number // fold
    row, head, query = (x.expand(number.shape).flatten() for x in at)
    return BlockLayout.from_pairs(
        block, blocks, row, head, query, key.flatten(), batches=batch, heads=heads * fold, longest=1
    )


def _attend_picked(
    q: Tensor, finished: Finished, picks: Tensor, tokens: int, most: int
) -> tuple[Tensor, Tensor, _Groups]:
    """Output of the groups, ``(B * Lq * H * S, E)``, its log-sum-exp for each pick, ``(B, Tq, H, K)``; the groups."""
    batch, _, heads, count = picks.shape
    block = finished.keys.shape[2]
    groups = _group(picks, tokens, block, most)
    grouped = Take.apply(q.flatten(0, 2), groups.queries, groups.places)
    grouped = grouped.view(batch, -1, heads * (count + 1), q.shape[-1])
    missing = -(-tokens // block) - finished.keys.shape[1]
    keys, values = (F.pad(x.flatten(1, 2), (0, 0, 0, 0, 0, missing * block)) for x in finished[:2])
    output, lse = softmax_attention(grouped, keys, values, layout=groups.layout, return_lse=True)
    lse = Take.apply(lse.reshape(-1, 1), groups.places.flatten(), groups.pairs[:, None])
    return output.flatten(0, 2), lse.view(picks.shape), groups
