"""Random features: orthogonal projections that are redrawn in training, and a running maximum of exponents."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from zoo.mixers.parts.call import Call
from zoo_kernels.backend import without_autocast


def orthogonal_rows(heads: int, rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Random matrices whose rows are standard normal and orthogonal in blocks of ``width`` of them.

    Yu et al. 2016 (arXiv:1610.09072). Q of a QR decomposition follows Haar's measure only with the signs of R's
    diagonal (Mezzadri 2007, arXiv:math-ph/0609050): without, its first column leans to one side, and estimates of the
    kernel are biased.

    Returns:
        ``(heads, rows, width)`` fp64 on the CPU.
    """
    shape = heads, -(-rows // width), width, width
    normal = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    q, r = torch.linalg.qr(normal)
    q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]
    lengths = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").norm(dim=-1, keepdim=True)
    return (q * lengths).flatten(1, 2)[:, :rows]


class RandomProjection(nn.Module):
    """Random projection ``x -> W x`` with its own W per head, which changes only in :meth:`start_step`.

    W is stored as the bits of fp32 numbers in an integer buffer: in the state dict, but no ``.to(bfloat16)`` rounds it.

    Args:
        heads: number of heads.
        features: rows of W.
        width: columns of W.
        layer: index of the layer, part of the seed.
        seed: seed of W, the same on every rank.
        redraw: training steps between draws; 0 or None for never.

    Raises:
        ValueError: if there is no feature, or ``redraw`` is negative.
    """

    bits: Tensor

    def __init__(self, heads: int, features: int, width: int, layer: int, seed: int, redraw: int | None) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features={features}: expected at least 1 random feature per head.")
        if redraw is not None and redraw < 0:
            raise ValueError(f"redraw={redraw}: expected a number of steps, or 0 to keep the first features.")
        self.layer, self.seed, self.redraw = layer, seed, redraw
        self.register_buffer("bits", torch.empty(heads, features, width, dtype=torch.int32))
        self._draw(0)

    def weight(self) -> Tensor:
        """Returns W, ``(H, features, D)`` fp32, whatever the dtype of the model."""
        return self.bits.view(torch.float32)

    @without_autocast
    def forward(self, x: Tensor) -> Tensor:
        """Projects ``(B, T, H, D)`` to ``(B, T, H, features)``, in fp32 or better."""
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.einsum("bthd,hfd->bthf", x.to(wide), self.weight().to(wide))

    def start_step(self, step: int) -> None:
        """Redraws W if ``step // redraw`` has changed; the draw depends on the step alone."""
        if self.training and self.redraw and step // self.redraw != self._drawn:
            self._draw(step // self.redraw)

    @torch.no_grad()
    def _draw(self, index: int) -> None:
        key = hashlib.sha256(f"{self.seed} {self.layer} {index}".encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(key[:8], "little") >> 1)
        heads, rows, width = self.bits.shape
        self.bits.copy_(orthogonal_rows(heads, rows, width, generator).float().view(torch.int32))
        self._drawn: int | None = index

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._drawn = None  # what is loaded may be of any step
        super()._load_from_state_dict(*args, **kwargs)

    def extra_repr(self) -> str:
        heads, features, width = self.bits.shape
        return f"heads={heads}, features={features}, width={width}, seed={self.seed}, redraw={self.redraw}"


@torch.no_grad()
def running_maximum(peaks: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Running maximum ``M_t`` of the keys so far in the document, and the log decay ``M_{t-1} - M_t``.

    It takes the place of a maximum over all positions, which would leak the future. Padding neither raises it nor
    decays. Padded keys get their own peak in place of ``M_t``, so that no exponent is positive.

    Args:
        peaks: largest exponent of each key, ``(B, T, H)``.
        call: arguments of the mixer, whose cache is None or a :class:`MaximumCache`.

    Returns:
        ``M`` and the log decay, both ``(B, T, H)``; the log decay of the first token of a document is 0.
    """
    real = call.real()
    seen = peaks if real is None else peaks.masked_fill(~real[..., None], -torch.inf)
    top = seen.cummax(1).values if call.documents is None else _maximum_of_documents(seen, call.positions)
    before = top[:, :1]
    if call.cache is not None:
        before = call.cache.maximum[:, None].to(top.dtype)
        top = torch.maximum(top, before)
        call.cache.maximum = top[:, -1].to(call.cache.maximum.dtype)
    log_decay = torch.cat([before, top[:, :-1]], 1) - top
    log_decay = log_decay.masked_fill((call.positions == 0)[..., None], 0)
    return top if real is None else torch.where(real[..., None], top, peaks), log_decay


def _maximum_of_documents(values: Tensor, positions: Tensor) -> Tensor:
    """Running maximum of ``(B, T, H)`` that starts anew at each position 0, in log2(T) doublings of its reach."""
    reach = 1
    while reach < values.shape[1]:
        inside = (positions[:, reach:] >= reach)[..., None]
        longer = torch.where(inside, torch.maximum(values[:, reach:], values[:, :-reach]), values[:, reach:])
        values = torch.cat([values[:, :reach], longer], 1)
        reach *= 2
    return values
