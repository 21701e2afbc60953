"""Which keys a query may read: causal, aligned at the end, inside its document, inside a window or among the sinks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo_kernels.documents import document_positions, document_starts

__all__ = ["KeyRule", "document_positions", "document_starts"]


@dataclass(frozen=True)
class KeyRule:
    """The rule, and how to evaluate it for a block of queries.

    ``offset`` is Tk - Tq; ``window`` counts keys with the query's own; ``sink_tokens`` are the first of each document.
    """

    offset: int
    window: int | None
    sink_tokens: int
    documents: Tensor | None

    def key_range(self, start: int, stop: int, begins: int = 0) -> tuple[int, int, int]:
        """Keys of queries ``start <= t < stop``: how many of the first ones, and a range ``first <= j < last`` behind.

        Args:
            begins: where the earliest of the documents of query ``start`` begins.
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
        """``(B or 1, 1, queries, keys)`` bool: True where the query may read the key."""
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
