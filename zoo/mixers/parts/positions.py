"""Position encodings of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rotary_table(positions: Tensor, theta: float, width: int, dtype: torch.dtype) -> Tensor:
    """Computes cosines and sines of rotary positions (Su et al. 2021, arXiv:2104.09864).

    Pair i of adjacent numbers turns by ``position * theta^(-2i / D)``. Angles are computed in fp64: at position 10^6
    the steps of fp32 are 0.06 rad.

    Args:
        positions: position of each token in its document, ``(1 or B, T)``.
        theta: base of the frequencies.
        width: even number D of the numbers that are rotated.
        dtype: dtype of the table.

    Returns:
        ``(1 or B, T, 1, D / 2, 2)``, the cosine first.
    """
    place = torch.arange(0, width, 2, device=positions.device, dtype=torch.float64)
    angle = positions[..., None] * theta ** (-place / width)
    return torch.stack([angle.cos(), angle.sin()], -1)[:, :, None].to(dtype)


def turn(x: Tensor, table: Tensor) -> Tensor:
    """Rotates adjacent pairs of numbers by the angles of a table; numbers behind them stay unchanged.

    Args:
        x: heads, ``(B, T, H, D)``.
        table: from :func:`rotary_table`, for D numbers or fewer.

    Returns:
        ``(B, T, H, D)`` in the dtype of x.
    """
    width = 2 * table.shape[-2]
    if width < x.shape[-1]:
        return torch.cat([turn(x[..., :width], table), x[..., width:]], -1)
    pairs = x.to(table.dtype).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # inductor generates no code for complex numbers, and fuses the real products
        (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
    product = torch.view_as_complex(pairs.contiguous()) * torch.view_as_complex(table)  # one pass instead of five
    return torch.view_as_real(product).flatten(-2).to(x.dtype)


def rotate(x: Tensor, positions: Tensor, theta: float, width: int | None = None) -> Tensor:
    """Rotates heads ``x (B, T, H, D)`` by their positions ``(1 or B, T)``: :func:`turn` with a table of its own.

    The first ``width`` of the D numbers are rotated; all of them if it is None.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return turn(x, rotary_table(positions, theta, width or x.shape[-1], wide))


class Rotary:
    """Positions of the tokens of one forward pass, and the rotary tables that its layers share.

    It is a class of its own and no container, since wrappers of modules would cast the tables in a container with the
    activations.

    Args:
        positions: position of each token in its document, ``(1 or B, T)``.
        dtype: dtype of the tables.
    """

    def __init__(self, positions: Tensor, dtype: torch.dtype) -> None:
        self.positions, self.dtype = positions, dtype
        self._tables: dict[tuple[float, int], Tensor] = {}

    def table(self, theta: float, width: int) -> Tensor:
        """Returns the table of a base and a width, which is made on first use; see :func:`rotary_table`."""
        if (theta, width) not in self._tables:
            self._tables[theta, width] = rotary_table(self.positions, theta, width, self.dtype)
        return self._tables[theta, width]


class LinearizedRelativeEncoding(nn.Module):
    """Learned relative positions, LRPE-d (Qin et al. 2023, arXiv:2307.09270).

    It maps x to ``[x cos(theta t), x sin(theta t)]``: the product of a query at t and a key at j becomes ``sum_i q_i
    k_i cos(theta_i (t - j))``, and the width doubles.

    The parameter is the logarithm of theta's ratio to its start, ``log_ratio (H, D)``: frequencies span eight decades,
    and a step of an optimizer that suits the largest would wipe out the others.
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

    def forward(self, positions: Tensor) -> Tensor:
        """Computes cosines and sines ``(1 or B, T, H, 2, D)`` of positions ``(1 or B, T)``, in fp32 or better."""
        angle = positions[..., None, None] * self.theta
        return torch.stack([angle.cos(), angle.sin()], -2)

    @staticmethod
    def encode(x: Tensor, table: Tensor) -> Tensor:
        """Encodes heads ``(B, T, H, D)`` by the table of their positions: ``[x cos, x sin]``, ``(B, T, H, 2D)``."""
        return (x[..., None, :] * table.to(x.dtype)).flatten(-2)
