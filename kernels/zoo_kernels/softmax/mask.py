"""Rule of which keys a query may read: causal, and limited to its document, to a window and to sink tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_kernels.documents import document_positions, document_starts

__all__ = ["KeyRule", "document_positions", "document_starts"]


@dataclass(frozen=True)
class KeyRule:
    """Which keys a query may read, evaluated for a block of queries.

    Attributes:
        offset: Tk - Tq.
        window: number of keys that a query may read, its own included; None for all.
        sink_tokens: number of first tokens of each document that stay visible.
        documents: ``(B, Tk)`` ids, or None.
    """

    offset: int
    window: int | None
    sink_tokens: int
    documents: Tensor | None

    def key_range(self, start: int, stop: int, begins: int = 0) -> tuple[int, int, int]:
        """Returns the keys of queries ``start <= t < stop``.

        Args:
            start: first query.
            stop: query behind the last one.
            begins: where the earliest of the documents of query ``start`` begins.

        Returns:
            The number of first keys, and a range ``first <= j < last`` behind them.
        """
        last = max(stop + self.offset, 0)
        first = begins if self.window is None else max(start + self.offset - self.window + 1, begins)
        first = min(first, last)
        if self.window is None or not self.sink_tokens:
            return 0, first, last
        if self.documents is not None:  # sinks lie at the start of each document
            return 0, min(begins, last), last
        return min(self.sink_tokens, first), first, last

    def allowed(self, queries: tuple[int, int], keys: tuple[int, int], device: torch.device) -> Tensor:
        """Returns ``(B or 1, 1, queries, keys)`` bool: True where the query may read the key."""
        t = torch.arange(*queries, device=device)[:, None] + self.offset
        j = torch.arange(*keys, device=device)[None, :]
        causal = (j <= t)[None]
        near = causal if self.window is None else causal & (j > t - self.window)
        if self.documents is None:
            return (near | (causal & (j < self.sink_tokens)))[:, None]
        ids = self.documents
        of_queries = ids[:, max(queries[0] + self.offset, 0) : queries[1] + self.offset]
        same = of_queries[:, :, None] == ids[:, None, slice(*keys)]
        if self.sink_tokens:
            near = near | (causal & (document_positions(ids)[:, None, slice(*keys)] < self.sink_tokens))
        return (near & same)[:, None]
