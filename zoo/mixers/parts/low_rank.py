"""Matrices of low rank."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class LowRank(nn.Module):
    """``x -> W_up f(W_down x) (+ b)``, with ``rank`` numbers in between.

    Args:
        width: numbers of an input.
        rank: numbers in between.
        outputs: numbers of an output.
        bias: whether a bias, 0 at first, is added.
        between: function f of the numbers in between; None for none.
    """

    def __init__(
        self,
        width: int,
        rank: int,
        outputs: int,
        bias: bool = False,
        between: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.between = between
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        self.bias = nn.Parameter(self.up.weight.new_zeros(outputs)) if bias else None

    @property
    def matrix_numbers(self) -> int:
        """Numbers that every token is multiplied by."""
        return self.down.weight.numel() + self.up.weight.numel()

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` -> ``(..., outputs)``."""
        inner = self.down(x)
        y: Tensor = self.up(inner if self.between is None else self.between(inner))
        return y if self.bias is None else y + self.bias.to(y.dtype)
