"""How much of what a key holds a token replaces."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.mixers.parts.decays import wide


class WriteStrength(nn.Module):
    """``most * sigmoid(W x)``: one number per head, between 0 and ``most``.

    Args:
        width: numbers of an input.
        outputs: numbers of an output.
        most: 1, or 2: a state's eigenvalues then reach -1 (Grazzi et al. 2024, arXiv:2411.12537).
    """

    def __init__(self, width: int, outputs: int, most: float) -> None:
        super().__init__()
        self.projection, self.most = nn.Linear(width, outputs, bias=False), most

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, C)`` -> ``(B, T, outputs)`` in fp32 or better."""
        return self.most * wide(self.projection(x)).sigmoid()
