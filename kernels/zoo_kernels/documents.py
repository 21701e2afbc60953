"""Starts and positions of packed documents."""

from __future__ import annotations

import torch
from torch import Tensor


def document_starts(documents: Tensor) -> Tensor:
    """Index of the first token of each token's document: ``(B, T)`` ids, each contiguous, to ``(B, T)`` int64."""
    time = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return torch.where(starts, time, 0).cummax(dim=1).values


def document_positions(documents: Tensor) -> Tensor:
    """Position of each token in its document, counted from 0: ``(B, T)`` ids, each contiguous, to ``(B, T)`` int64."""
    return torch.arange(documents.shape[1], device=documents.device) - document_starts(documents)
