"""Attention to global tokens beside a window, and from them to all that came before.

Global keys are moved to the front of an array of their own, in their order: the keys that a query reads there are a
range of it, and no key comes to lie behind its own position, so that the kernels' causal rule hides nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.mixers.caches.global_tokens import flagged, gather_tokens
from zoo.mixers.parts.dilation import Dilation
from zoo_kernels import BlockLayout, softmax_attention
from zoo_kernels.documents import document_starts

BLOCK = 64  # of the layouts
WORD = 0xFFFFFFFF


def attend_far(
    q: Tensor, k: Tensor, v: Tensor, flags: Tensor, near: Dilation, documents: Tensor | None, most: int
) -> tuple[Tensor, Tensor]:
    """Attention to the flagged keys outside of the dilated window ``near``.

    Args:
        q: queries ``(B, Tq, H, D)``, the last of Tk tokens.
        k: keys ``(B, Tk, G, D)``.
        v: values ``(B, Tk, G, E)``.
        flags: ``(1 or B, Tk)`` bool, True for global keys.
        near: the dilated window, whose keys are left out.
        documents: ``(B, Tk)`` ids of packed documents, or None.
        most: upper bound of the flagged keys of a row.

    Returns:
        Output ``(B, Tq, H, E)`` and log-sum-exp ``(B, Tq, H)``, -inf where there is no such key.
    """
    length, asked = k.shape[1], q.shape[1]
    places = flagged(flags, most)
    before = F.pad(flags.cumsum(1), (1, 0))  # flagged ones before each token
    t = torch.arange(length - asked, length, device=q.device)
    close = 1 if near.taps is None or near.rate > 1 else near.taps  # the latest keys, all of which are taps
    low = torch.take_along_dim(before, _starts(documents, t), 1)
    high = before[:, (t - close + 1).clamp(min=0)].expand(low.shape)
    taps = (places, near) if near.rate > 1 else None
    layout = range_layout(low, high, places.shape[1], length - asked, taps)
    k, v = (F.pad(gather_tokens(x, places), (0, 0, 0, 0, 0, length - places.shape[1])) for x in (k, v))
    return softmax_attention(q, k, v, layout=layout, return_lse=True)


def replace_rows(
    output: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, documents: Tensor | None, most: int
) -> Tensor:
    """Replaces the output of the queries in ``rows`` by attention to all earlier keys of their document.

    Args:
        output: ``(B, Tq, H, E)``.
        q: queries ``(B, Tq, H, D)``, the last of Tk tokens.
        k: keys ``(B, Tk, G, D)``.
        v: values ``(B, Tk, G, E)``.
        rows: ``(1 or B, Tq)`` bool.
        documents: ``(B, Tk)`` ids of packed documents, or None.
        most: upper bound of the flagged queries of a row.
    """
    length, offset = k.shape[1], k.shape[1] - q.shape[1]
    places = flagged(rows.flip(1), most)  # the latest first: no query comes to lie before its own position
    places = q.shape[1] - 1 - places.flip(1)
    wanted = torch.take_along_dim(rows, places, 1)
    low = torch.take_along_dim(_starts(documents, torch.arange(length, device=q.device)), places + offset, 1)
    high = torch.where(wanted, places + offset + 1, 0).expand(low.shape)
    layout = range_layout(low, high, length, length - places.shape[1])
    new = softmax_attention(gather_tokens(q, places), k, v, layout=layout)
    new = torch.where(wanted[..., None, None], new, gather_tokens(output, places))
    return output.scatter(1, places[..., None, None].expand(new.shape), new)


def range_layout(
    low: Tensor, high: Tensor, keys: int, offset: int, taps: tuple[Tensor, Dilation] | None = None
) -> BlockLayout:
    """Layout in which each query reads a range of keys, ``low <= j < high``, built without a host sync.

    Args:
        low: ``(1 or B, Tq)``, for the queries at ``offset``, ``offset + 1``, ... among the keys.
        high: ``(1 or B, Tq)``.
        keys: number of keys in front that may be read at all.
        offset: position of the first query among the keys.
        taps: places ``(1 or B, keys)`` of the keys in time, where query i is at ``offset + i``, and a dilation whose
            keys are left out.
    """
    first, asked = offset // BLOCK, low.shape[1]
    rows, columns, device = -(-(offset + asked) // BLOCK), -(-keys // BLOCK), low.device
    t = torch.arange(first * BLOCK, rows * BLOCK, device=device).clamp(offset, offset + asked - 1)
    low, high = (x[:, t - offset].view(len(low), rows - first, 1, BLOCK, 1) for x in (low, high))
    base = 32 * torch.arange(columns * BLOCK // 32, device=device).view(columns, 1, BLOCK // 32)
    words = _ones(high - base) & ~_ones(low - base)  # (B', rows, columns, tokens of a block, words)
    if taps is not None:
        places = F.pad(taps[0], (0, columns * BLOCK - keys)).view(-1, 1, columns, 1, BLOCK // 32, 32)
        words = words & ~_tap_words(t.view(-1, 1, BLOCK, 1), places, taps[1])
    bits = ((words ^ 0x80000000) - 0x80000000).to(torch.int32).flatten(0, 2)
    shown, whole = (words != 0).flatten(3).any(-1), (words == WORD).flatten(3).all(-1)
    sides = [torch.arange(*span, device=device) for span in ((len(low),), (first, rows), (columns,))]
    batch, query, key = (x.flatten() for x in torch.meshgrid(*sides, indexing="ij"))
    key = torch.where(shown.flatten(), key, -1)
    masks = torch.where(whole.flatten(), -1, torch.arange(len(key), device=device))
    head = torch.zeros_like(key)
    return BlockLayout.from_pairs(
        BLOCK, rows, batch, head, query, key, masks, bits, batches=len(low), longest=columns
    )  # fmt: skip


def _starts(documents: Tensor | None, t: Tensor) -> Tensor:
    """First token of the document of the tokens t, ``(1 or B, len(t))``."""
    return torch.zeros_like(t)[None] if documents is None else document_starts(documents)[:, t]


def _ones(count: Tensor) -> Tensor:
    """Words of 32 bits in int64 whose lowest ``count`` bits are set, of any integers."""
    return (1 << count.clamp(0, 32)) - 1


def _tap_words(t: Tensor, places: Tensor, near: Dilation) -> Tensor:
    """Words with a bit for each key that the queries t read by a dilation; the loop keeps the arrays small."""
    words, span = torch.zeros_like(t[None]), near.span
    for bit in range(32):
        distance = t - places[..., bit]
        tap = (distance >= 0) & (distance % near.rate == 0)
        words = words | ((tap if span is None else tap & (distance < span)).to(torch.int64) << bit)
    return words
