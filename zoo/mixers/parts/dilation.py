"""Attention to every r-th key: by residue classes over a sequence, by gathering for one query.

Tokens whose positions are equal modulo r form a class. Inside a class the keys of a query are consecutive, so classes
are treated as heads, which copies nothing, or as batch rows where they have documents of their own, and dilated
attention becomes plain causal attention over T / r tokens. Only distances matter: the result does not depend on where a
sequence or a document begins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.mixers.parts.costs import window_pairs
from zoo.mixers.parts.merge import merge
from zoo_kernels import softmax_attention, softmax_attention_step
from zoo_kernels.documents import document_starts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dilation:
    """Keys that a query reads: those at the distances 0, r, 2r, ..., and all that are nearer than ``near``.

    Attributes:
        rate: the distance r between two keys.
        taps: number of distances that are read; None for all.
        near: 1 for the query's own key alone; ``rate`` for the union with a window, which needs all the taps.
    """

    rate: int
    taps: int | None = None
    near: int = 1

    def __post_init__(self) -> None:
        if self.rate < 1 or (self.taps is not None and self.taps < 1):
            raise ValueError(f"a dilation by {self.rate} of {self.taps} taps: expected at least 1 of both.")
        if self.near != 1 and (self.near != self.rate or self.taps is not None):
            raise ValueError(f"near={self.near} with {self.taps} taps: expected 1, or rate={self.rate} and all taps.")

    @property
    def span(self) -> int | None:
        """Number of latest tokens that a query can reach, None if there is no limit."""
        return None if self.taps is None else (self.taps - 1) * self.rate + 1

    def reads(self, held: int) -> int:
        """Number of keys that the last of ``held`` tokens reads."""
        far = (held - 1) // self.rate
        return min(self.near, held) + (far if self.taps is None else min(far, self.taps - 1))

    def pairs(self, context: int, block: int = 1) -> int:
        """Number of query-key pairs in a sequence.

        It is the sum over the windows of the classes and the remaining near keys; ``block`` is as in
        :func:`zoo.mixers.parts.costs.window_pairs`.
        """
        short, longer = divmod(context, self.rate)
        taps = context if self.taps is None else self.taps
        of_class = (window_pairs(length, taps, block=block) for length in (short + 1, short))
        classes = sum(number * pairs for number, pairs in zip((longer, self.rate - longer), of_class))
        near = 0 if self.near == 1 else window_pairs(context, self.near, block=block) - context
        return classes + near

    def attend(self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None = None) -> Tensor:
        """Computes the attention ``(B, Tq, H, E)``; arguments as in :func:`zoo_kernels.softmax_attention`."""
        if self.near == 1:
            return attend_residues(q, k, v, self.rate, self.taps, documents)[0]
        parts = [softmax_attention(q, k, v, window=self.near, documents=documents, return_lse=True)]
        if k.shape[1] > self.rate:
            parts.append(attend_earlier_residues(q, k, v, self.rate, documents))
        return merge(parts)[0]

    def step(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> Tensor:
        """Computes the attention ``(B, H, E)`` of one query per row; position p lies in slot p modulo the capacity.

        Only the keys that the query reads are touched, and none is copied if it reads all of them.
        """
        held = k_cache.shape[1]
        if self.reads(held) == held:
            return softmax_attention_step(q, k_cache, v_cache, lengths.clamp(max=held))
        far = self.reads(held) - min(self.near, held)
        near = torch.arange(min(self.near, held), device=q.device)
        distances = torch.cat([near, self.rate * torch.arange(1, far + 1, device=q.device)])  # valid ones come first
        slots = (lengths[:, None] - 1 - distances) % held
        rows = torch.arange(len(lengths), device=q.device)[:, None]
        valid = (distances < lengths[:, None]).sum(1)
        return softmax_attention_step(q, k_cache[rows, slots], v_cache[rows, slots], valid)


def attend_residues(
    q: Tensor, k: Tensor, v: Tensor, rate: int, taps: int | None, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention to the latest ``taps`` keys at the distances 0, rate, 2 rate, ...; None for all of them.

    Args:
        q: queries ``(B, Tq, H, D)``, the last of Tk tokens.
        k: keys ``(B, Tk, G, D)``.
        v: values ``(B, Tk, G, E)``.
        rate: distance between two keys.
        taps: number of keys; None for all.
        documents: ``(B, Tk)`` ids of packed documents.

    Returns:
        Output ``(B, Tq, H, E)`` and log-sum-exp ``(B, Tq, H)``.
    """
    classes = _Classes(rate, q, k, documents)
    q, k, v, ids = classes.queries(q), classes.keys(k), classes.keys(v), classes.ids
    output, lse = softmax_attention(q, k, v, window=taps, documents=ids, return_lse=True)
    return classes.restore(output), classes.restore(lse)


def attend_earlier_residues(
    q: Tensor, k: Tensor, v: Tensor, rate: int, documents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention to all keys at the distances rate, 2 rate, ..., without the query's own; see :func:`attend_residues`.

    Keys move up by one place in their class. The place of the first token of a document then holds a key of another
    document: it gets an id of its own, and its query, which has no key, is blanked.
    """
    classes = _Classes(rate, q, k, documents)
    q, k, v, ids = classes.queries(q), classes.keys(k)[:, :-1], classes.keys(v)[:, :-1], classes.ids
    first = q.shape[1] - min(q.shape[1], k.shape[1])  # 1 where the classes' first queries, which have no key, are asked
    labels = fresh = None
    if ids is not None:
        fresh = ids[:, 1:] != ids[:, :-1]
        labels = 2 * ids[:, 1:] + fresh
    output, lse = softmax_attention(q[:, first:], k, v, documents=labels, return_lse=True)
    if fresh is not None:
        blank = fresh[:, fresh.shape[1] - lse.shape[1] :, None]
        output, lse = output.masked_fill(blank[..., None], 0), lse.masked_fill(blank, -torch.inf)
    output, lse = _pad_time(output, first, 0), _pad_time(lse, first, 0, -torch.inf)
    return classes.restore(output), classes.restore(lse)


def used_rates(dilation: Sequence[int] | int, most: int, heads: int, groups: int) -> list[int]:
    """Returns the dilations that are used: a single one, or those of a list that ``most`` heads can take in turn.

    Dilations for which no head is left are named in a warning.

    Raises:
        ValueError: without a dilation, or on one below 1.
    """
    given = [dilation] if isinstance(dilation, int) else list(dilation)
    if not given or min(given) < 1:
        raise ValueError(f"dilation={dilation!r}: expected a rate of at least 1, or a list of some.")
    if len(given) > most:
        log.warning(
            "dilation=%s: heads=%d with kv_heads=%d take %d rates in turn, and %s are not used: "
            "drop some or add heads.",
            given, heads, groups, most, given[most:],
        )  # fmt: skip
    return given[:most]


def by_rate(dilations: Sequence[Dilation], attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Applies ``attend(dilation, q, k, v)`` to the heads of each dilation and restores the order of the heads.

    Args:
        dilations: taken in turn by the key heads, or by the query heads of each key head where there are more dilations
            than key heads.
        attend: attention for any number of heads and tokens of ``(B, T, heads, X)``.
        q: queries ``(B, Tq, H, D)``.
        k: keys ``(B, Tk, G, D)``.
        v: values ``(B, Tk, G, E)``.
    """
    every, groups = len(dilations), k.shape[2]
    if every == 1:
        return attend(dilations[0], q, k, v)
    q = q.unflatten(2, (groups, -1))
    if groups < every:
        return _by_rate_in_groups(dilations, attend, q, k, v)
    turns = [_in_turn(x, every) for x in (q, k, v)]
    outputs = []
    for dilation, mine, keys, values in zip(dilations, *turns):
        y = attend(dilation, mine.flatten(2, 3), keys, values).unflatten(2, (-1, q.shape[3]))
        missing = -(-groups // every) - y.shape[2]
        outputs.append(F.pad(y, (0, 0, 0, 0, 0, missing)) if missing else y)
    return torch.stack(outputs, 3).flatten(2, 3)[:, :, :groups].flatten(2, 3)


def _by_rate_in_groups(
    dilations: Sequence[Dilation], attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """The same of ``q (B, T, G, heads of a group, D)``, which take the dilations in turn."""
    every, (groups, heads) = len(dilations), q.shape[2:4]
    outputs = []
    for number, dilation in enumerate(dilations):
        y = attend(dilation, q[:, :, :, number::every].flatten(2, 3), k, v).unflatten(2, (groups, -1))
        missing = -(-heads // every) - y.shape[3]
        outputs.append(F.pad(y, (0, 0, 0, missing)) if missing else y)
    return torch.stack(outputs, 4).flatten(3, 4)[:, :, :, :heads].flatten(2, 3)


def _in_turn(x: Tensor, every: int) -> list[Tensor]:
    """Of the heads ``(B, T, G, ...)`` every so many, from each of the first on."""
    if x.shape[2] % every == 0:  # gradients of these views come together in one pass
        return list(x.unflatten(2, (-1, every)).unbind(3))
    return [x[:, :, i::every] for i in range(every)]


class _Classes:
    """Folds time into classes. Padding at the end is in the future of all; queries are filled up in front.

    Folded arrays are ``(B, ceil(T / rate), rate * heads, ...)``, or ``(B * rate, ceil(T / rate), heads, ...)`` where
    there are documents; there may be one query more, where they lie across.
    """

    def __init__(self, rate: int, q: Tensor, k: Tensor, documents: Tensor | None) -> None:
        self.rate = min(rate, k.shape[1])  # no key is farther away
        self.asked, self.back = q.shape[1], -k.shape[1] % self.rate
        self.front = -(self.asked + self.back) % self.rate
        self.ids = None
        if documents is not None:
            starts = _pad_time(document_starts(documents), 0, self.back, -1)
            self.ids = starts.unflatten(1, (-1, self.rate)).transpose(1, 2).flatten(0, 1)

    def queries(self, q: Tensor) -> Tensor:
        """Of ``(B, Tq, heads, ...)``."""
        return self._fold(_pad_time(q, self.front, self.back))

    def keys(self, k: Tensor) -> Tensor:
        """Of ``(B, Tk, heads, ...)``."""
        return self._fold(_pad_time(k, 0, self.back))

    def restore(self, x: Tensor) -> Tensor:
        """Of the queries, in their order: ``(B, Tq, heads, ...)``."""
        if self.ids is None:
            whole = x.unflatten(2, (self.rate, -1)).flatten(1, 2)
        else:
            whole = x.unflatten(0, (-1, self.rate)).transpose(1, 2).flatten(1, 2)
        return whole[:, self.front : self.front + self.asked]

    def _fold(self, x: Tensor) -> Tensor:
        classes = x.unflatten(1, (-1, self.rate))
        return classes.flatten(2, 3) if self.ids is None else classes.transpose(1, 2).flatten(0, 1)


def _pad_time(x: Tensor, front: int, back: int, value: Any = 0) -> Tensor:
    if not front and not back:
        return x
    return F.pad(x, (0, 0) * (x.dim() - 2) + (front, back), value=value)
