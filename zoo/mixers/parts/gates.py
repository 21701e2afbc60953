"""Output gates: the output is multiplied elementwise by a function of the layer's input."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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

    def __init__(self, width: int, gated: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Linear(width, gated, bias=False)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Multiplies ``y (B, T, gated)`` by the gate of ``x (B, T, C)``."""
        return y * self.activation(self.weight(x))


def build_gate(activation: str, width: int, gated: int) -> OutputGate | None:
    """Returns the gate for ``gated`` numbers from an input of ``width``, or None for ``none``.

    Raises:
        ValueError: if ``activation`` is not one of ``none``, ``linear``, ``sigmoid`` and ``silu``.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"gate={activation!r}: expected one of {', '.join(ACTIVATIONS)}.")
    function = ACTIVATIONS[activation]
    return None if function is None else OutputGate(width, gated, function)
