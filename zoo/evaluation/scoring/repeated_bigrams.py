"""Tokens that repeat an earlier bigram of their context, and the distance to it.

A token whose bigram (x[t-1], x[t]) has occurred before can be recalled from the context; other tokens must be
predicted. Models with a small state lose most on the first kind (Arora et al., 2023, "Zoology").
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

GAP_EDGES = (1, 16, 64, 256, 1024, 4096, 16384, 65536)  # the last bucket has no end
OTHER = 0  # group of the tokens that repeat nothing; group g holds the gaps from GAP_EDGES[g - 1] on
GROUPS = 1 + len(GAP_EDGES)


def bigram_gaps(tokens: np.ndarray) -> np.ndarray:
    """Returns the distance from each token's bigram to the latest equal one before it, 0 where there is none.

    Args:
        tokens: ``(T,)`` ids of what the model sees, from the first token of its context on.

    Returns:
        ``(T - 1,)`` int64, for the tokens 1..T-1: the first has no token before it.
    """
    tokens = np.asarray(tokens, dtype=np.int64)
    codes = tokens[:-1] * (int(tokens.max(initial=0)) + 1) + tokens[1:]
    order = np.argsort(codes, kind="stable")  # equal bigrams side by side, in the order of the text
    repeats = codes[order[1:]] == codes[order[:-1]]
    gaps = np.zeros(len(codes), dtype=np.int64)
    gaps[order[1:][repeats]] = (order[1:] - order[:-1])[repeats]
    return gaps


def gap_groups(gaps: np.ndarray) -> np.ndarray:
    """Returns the group of each gap: OTHER for 0, else 1 + the index of its bucket in GAP_EDGES."""
    return np.searchsorted(GAP_EDGES, gaps, side="right")


def split_sums(sums: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields name and ``(documents, 3)`` sums of the recalled tokens, of the others, and of each gap that occurs.

    Args:
        sums: ``(documents, GROUPS, 3)`` of any columns.
    """
    yield "recall", sums[:, 1:].sum(axis=1)
    yield "other", sums[:, OTHER]
    for bucket, start in enumerate(GAP_EDGES):
        if sums[:, bucket + 1].any():
            stop = f"-{GAP_EDGES[bucket + 1]}" if bucket + 1 < len(GAP_EDGES) else ""
            yield f"recall-gap-{start}{stop}", sums[:, bucket + 1]
