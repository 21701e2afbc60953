"""Output gates: an elementwise factor from the layer's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ACTIVATIONS = ("none", "linear", "sigmoid")


class OutputGate(nn.Module):
    """``y -> f(W x) * y``; ``linear`` is the gate of TransNormerLLM, ``sigmoid`` that of MiniMax-01."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.weight = nn.Linear(width, width, bias=False)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Gate ``y`` by ``x``, both ``(B, T, C)``."""
        gate = self.weight(x)
        return y * (torch.sigmoid(gate) if self.activation == "sigmoid" else gate)


def build_gate(activation: str, width: int) -> OutputGate | None:
    """The gate, or None for ``none``.

    Raises:
        ValueError: if ``activation`` is not one of ``none``, ``linear`` and ``sigmoid``.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"gate={activation!r}: expected one of {', '.join(ACTIVATIONS)}.")
    return None if activation == "none" else OutputGate(width, activation)
