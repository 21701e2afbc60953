"""Recurrences token by token in fp64, from the equations of the papers, and a mixer's outputs held against them.

Nothing here calls the kernels. An oracle is a function of a mixer, whose parameters it reads, and of one document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zoo
from zoo.mixers import Mixer

Oracle = Callable[[Any, Tensor], Tensor]
LENGTHS = (1, 2, 41, 23)  # of documents that are packed, below, at and above the chunks of the kernels
TOLERANCE = 1e-9


def draw(*shape: int) -> Tensor:
    """Normal numbers in fp64."""
    return torch.randn(*shape, dtype=torch.float64)


def drawn(name: str, **options: Any) -> Mixer:
    """A mixer in fp64 of which no parameter has a special value, as an initial 1 or 0 would be."""
    mixer = zoo.mixers.build(name, **({"width": 16, "heads": 2} | options)).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.dim() > 1:
                parameter.normal_().mul_(parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def heads(x: Tensor, count: int) -> Tensor:
    """``(B, T, H D)`` as ``(B, T, H, D)``."""
    return x.unflatten(-1, (count, -1))


def through(matrix: nn.Module, x: Tensor) -> Tensor:
    """``x`` by a matrix, or by two of low rank."""
    weight: Any = getattr(matrix, "weight", None)
    return x @ (matrix.up.weight @ matrix.down.weight if weight is None else weight).T


def convolved(mixer: Any, x: Tensor) -> list[Tensor]:
    """Queries, keys and values ``(B, T, numbers)`` of one document behind the short convolution and SiLU."""
    parts = [through(matrix, x) for matrix in (mixer.query, mixer.key, mixer.value)]
    joined, weight = torch.cat(parts, -1), mixer.conv.weight
    y = torch.zeros_like(joined) if mixer.conv.bias is None else mixer.conv.bias.expand_as(joined).clone()
    for back in range(weight.shape[1]):
        before = F.pad(joined, (0, 0, back, 0))[:, : x.shape[1]]
        y = y + weight[:, weight.shape[1] - 1 - back] * before
    return list((y * torch.sigmoid(y)).split([part.shape[-1] for part in parts], -1))


def unit(x: Tensor) -> Tensor:
    """``x`` of length 1, but for 1e-6 below the root."""
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` by its root mean square."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x))."""
    return torch.log1p(x.exp())


def recur(
    q: Tensor, k: Tensor, v: Tensor, kept: Tensor, read: Tensor | None = None, erase: Tensor | None = None
) -> Tensor:
    """``S = kept * S``, ``S -= erase (read S)``, ``S += k v``, ``o = q S``, ``(B, T, H, .)``; kept may be of heads."""
    state = torch.zeros(*k[:, 0].shape, v.shape[-1], dtype=k.dtype)
    outputs = []
    for t in range(k.shape[1]):
        state = state * (kept[:, t, :, None, None] if kept.dim() == 3 else kept[:, t, :, :, None])
        if read is not None and erase is not None:
            found = torch.einsum("bhd,bhde->bhe", read[:, t], state)
            state = state - torch.einsum("bhd,bhe->bhde", erase[:, t], found)
        state = state + torch.einsum("bhd,bhe->bhde", k[:, t], v[:, t])
        outputs.append(torch.einsum("bhd,bhde->bhe", q[:, t], state))
    return torch.stack(outputs, 1)


def assert_equals(mixer: Mixer, oracle: Oracle, tolerance: float = TOLERANCE, gradients: bool = True) -> None:
    """Packed documents with gradients, the whole, a split, short and ragged pieces and tokens all equal the oracle."""
    x = draw(2, sum(LENGTHS), mixer.width)
    ids = torch.repeat_interleave(torch.tensor([5, 3, 9, 2]), torch.tensor(LENGTHS)).expand(2, -1)
    packed = torch.cat([oracle(mixer, part) for part in x.split(LENGTHS, 1)], 1)
    y = mixer(x, documents=ids)
    close(y, packed, tolerance)
    if gradients:
        same_gradients(mixer, y, packed, 100 * tolerance)
    with torch.no_grad():
        whole = oracle(mixer, x)
        close(mixer(x), whole, tolerance)
        cache = mixer.new_cache(2, dtype=torch.float64)
        pieces = [mixer(piece, cache=cache) for piece in x.split((30, 2, 1, 1, 33), 1)]
        close(torch.cat(pieces, 1), whole, tolerance)
        ragged(mixer, x, whole, tolerance)


def same_gradients(mixer: Mixer, y: Tensor, want: Tensor, tolerance: float) -> None:
    """Gradients of all parameters are equal (fla#1142: a term was missing behind the last whole chunk)."""
    weight, parameters = torch.randn_like(want), list(mixer.parameters())
    gradients = (torch.autograd.grad((part * weight).sum(), parameters, allow_unused=True) for part in (y, want))
    for got, wanted in zip(*gradients, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            close(got, wanted, tolerance)


def ragged(mixer: Mixer, x: Tensor, whole: Tensor, tolerance: float) -> None:
    """A second row that is behind the first, once by more tokens than a convolution is wide and once by all."""
    cache, done = mixer.new_cache(2, dtype=torch.float64), [0, 0]
    for lengths in ([9, 2], [4, 0], [20, 31]):
        piece = torch.full((2, max(lengths), x.shape[-1]), torch.nan, dtype=x.dtype)
        for row, length in enumerate(lengths):
            piece[row, :length] = x[row, done[row] : done[row] + length]
        y = mixer(piece, cache=cache, lengths=torch.tensor(lengths))
        for row, length in enumerate(lengths):
            close(y[row, :length], whole[row, done[row] : done[row] + length], tolerance)
            done[row] += length


def close(got: Tensor, want: Tensor, tolerance: float = TOLERANCE) -> None:
    """Differences are below ``tolerance`` times the largest number."""
    if not want.numel():
        return
    worst, largest = (got - want).abs().max().item(), want.abs().max().item()
    assert worst <= tolerance * largest, f"{worst:.3g} of {largest:.3g}"
