"""Position encodings of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rotate(x: Tensor, positions: Tensor, theta: float, width: int | None = None) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864): adjacent pairs turn by position * theta^(-2i/D).

    Args:
        x: ``(B, T, H, D)`` with D even. positions: ``(1 or B, T)``. theta: base of the frequencies.
        width: even number of the D that are rotated, those at the front; None for all.

    Returns:
        Rotated ``(B, T, H, D)`` in the dtype of x.
    """
    if width is not None and width < x.shape[-1]:
        return torch.cat([rotate(x[..., :width], positions, theta), x[..., width:]], -1)
    width = x.shape[-1]
    wide = torch.promote_types(x.dtype, torch.float32)
    frequency = theta ** (-torch.arange(0, width, 2, device=x.device, dtype=wide) / width)
    angle = positions[..., None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle)[:, :, None]
    pairs = torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def check_base(rope_theta: float | None) -> None:
    """Raises ValueError unless the base of the rotary frequencies is over 0, or None for no positions."""
    if rope_theta is not None and not rope_theta > 0:
        raise ValueError(f"rope_theta={rope_theta}: expected a base over 0, or null for no positions.")


class LinearizedRelativeEncoding(nn.Module):
    """LRPE-d (Qin et al. 2023, arXiv:2307.09270): ``x -> [x cos(theta t), x sin(theta t)]``, theta learned.

    The product of a query at t and a key at j becomes ``sum_i q_i k_i cos(theta_i (t - j))``. The width doubles.

    What is trained is the logarithm of theta's ratio to its start, ``log_ratio (H, D)``: frequencies span eight
    decades, and a step of an optimizer that suits the largest would wipe out the others.
    """

    def __init__(self, heads: int, width: int, base: float = 10000.0) -> None:
        super().__init__()
        self.base = base
        self.log_ratio = nn.Parameter(torch.zeros(heads, width))

    @property
    def theta(self) -> Tensor:
        """Frequencies ``(H, D)`` in fp32 or better."""
        ratio = self.log_ratio
        wide = torch.promote_types(ratio.dtype, torch.float32)
        index = torch.arange(ratio.numel(), device=ratio.device, dtype=wide).view(ratio.shape)
        return self.base ** (-2 * index / ratio.numel()) * ratio.to(wide).exp()

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """``(B, T, H, D)`` and positions ``(1 or B, T)`` -> ``(B, T, H, 2D)``."""
        angle = positions[..., None, None] * self.theta
        return torch.cat([x * angle.cos().to(x.dtype), x * angle.sin().to(x.dtype)], dim=-1)
