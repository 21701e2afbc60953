"""Sums of losses, tokens and bytes, from which perplexity and bits per byte follow exactly."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Meter:
    """Adds up, on the device: nats and count of all targets, nats and bytes of the targets that stand for text."""

    def __init__(self, token_bytes: Tensor) -> None:
        self.token_bytes = token_bytes
        self.sums = self._zeros()

    def _zeros(self) -> Tensor:
        device = self.token_bytes.device
        return torch.zeros(4, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)

    def add(self, losses: Tensor, targets: Tensor, mask: Tensor | None = None) -> None:
        """Add the losses ``(B, T)`` in nats of targets ``(B, T)``; ``mask`` (B, T) bool says which count."""
        sizes = self.token_bytes[targets]
        counted = torch.ones_like(sizes) if mask is None else mask.to(sizes.dtype)
        text = counted * (sizes > 0)
        parts = ((losses * counted).sum(), counted.sum(), (losses * text).sum(), (sizes * counted).sum())
        self.sums += torch.stack([part.to(self.sums.dtype) for part in parts])

    def take(self) -> Tensor:
        """The sums so far ``(4,)``; starts again at zero."""
        sums, self.sums = self.sums, self._zeros()
        return sums


def metrics_of(sums: Tensor) -> dict[str, float]:
    """``loss`` (nats per target), ``perplexity`` (of targets) and ``bits_per_byte`` (of text) of a meter's sums."""
    nats, count, text_nats, size = sums.tolist()
    loss = nats / max(count, 1)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)) if loss == loss else math.nan,
        "bits_per_byte": text_nats / math.log(2) / size if size else math.nan,
    }
