"""Output gates: the output is multiplied elementwise by a function of the layer's input."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.parts.low_rank import LowRank


def _same(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "linear": _same,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
}


class OutputGate(nn.Module):
    """Output gate ``y -> f(W x) * y``.

    f is the identity (``linear``, as in TransNormerLLM), ``sigmoid`` (as in MiniMax-01) or ``silu`` (as in RetNet).
    """

    def __init__(self, width: int, gated: int, activation: Callable[[Tensor], Tensor], rank: int | None = None) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Linear(width, gated, bias=False) if rank is None else LowRank(width, rank, gated)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Multiplies ``y (B, T, gated)`` by the gate of ``x (B, T, C)``."""
        return y * self.activation(self.weight(x))


def build_gate(activation: str, width: int, gated: int, rank: int | None = None) -> OutputGate | None:
    """The gate of ``gated`` numbers by an input of ``width``, or None for ``none``; ``rank`` is that of its matrix.

    Raises:
        ValueError: if ``activation`` is not one of ``none``, ``linear``, ``sigmoid`` and ``silu``.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"gate={activation!r}: expected one of {', '.join(ACTIVATIONS)}.")
    function = ACTIVATIONS[activation]
    return None if function is None else OutputGate(width, gated, function, rank)
