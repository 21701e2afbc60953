"""Confidence intervals whose unit is the document or the sample."""

from __future__ import annotations

import numpy as np

RESAMPLES = 2000
CELLS = 2**20  # indices drawn at a time


def bootstrap_sums(columns: np.ndarray, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Column sums over documents drawn with replacement, as many as there are (cluster bootstrap).

    Args:
        columns: ``(documents, C)``, for instance nats and bytes of each document. seed: of the draws.

    Returns:
        ``(resamples, C)`` float64; the columns of a row come from the same draw, so that their ratios mean something.
    """
    columns = np.asarray(columns, dtype=np.float64)
    documents = len(columns)
    generator = np.random.default_rng(seed)
    rows = max(1, CELLS // max(1, documents))
    sums = []
    for first in range(0, resamples, rows):
        draws = generator.integers(0, documents, size=(min(rows, resamples - first), documents))
        sums.append(columns[draws].sum(axis=1))
    return np.concatenate(sums)


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
