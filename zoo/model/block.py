"""One decoder block: norm, mixer, residual; norm, gated MLP, residual."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers import Mixer
from zoo.mixers.parts.norms import build_norm


class GatedMLP(nn.Module):
    """Gated MLP ``W_down (f(W_gate x) * W_up x)``.

    It is SwiGLU with f = SiLU (Shazeer 2020, arXiv:2002.05202), and SGLU without f.
    """

    def __init__(self, width: int, hidden: int, activated: bool) -> None:
        super().__init__()
        self.activated = activated
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the MLP to each token, ``(..., C) -> (..., C)``."""
        gate = self.gate(x)
        return self.down((F.silu(gate) if self.activated else gate) * self.up(x))

    def reset_parameters(self, std: float, out_std: float) -> None:
        """Draws the initial weight matrices.

        Args:
            std: standard deviation of the matrices that read the input.
            out_std: standard deviation of the last matrix.
        """
        for matrix, deviation in ((self.gate, std), (self.up, std), (self.down, out_std)):
            nn.init.normal_(matrix.weight, std=deviation)


class Block(nn.Module):
    """Pre-norm block around a mixer; ``norm`` is ``rms`` or ``srms``."""

    def __init__(self, mixer: Mixer, width: int, hidden: int, norm: str, activated: bool) -> None:
        super().__init__()
        self.mixer_norm = build_norm(norm, width)
        self.mixer = mixer
        self.mlp_norm = build_norm(norm, width)
        self.mlp = GatedMLP(width, hidden, activated)

    def forward(
        self,
        x: Tensor,
        documents: Tensor | None = None,
        separators: Tensor | None = None,
        cache: Any = None,
        lengths: Tensor | None = None,
        carry: dict[str, Any] | None = None,
    ) -> Tensor:
        """Applies mixer and MLP with their residuals, ``(B, T, C) -> (B, T, C)``.

        The arguments are those of :meth:`zoo.mixers.Mixer.forward`.
        """
        x = x + self.mixer(
            self.mixer_norm(x), documents=documents, separators=separators, cache=cache, lengths=lengths, carry=carry
        )
        return x + self.mlp(self.mlp_norm(x))
