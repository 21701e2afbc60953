"""Module under test: fresh copies of it, the interface that it offers, and the tolerance of equal outputs."""

from __future__ import annotations

import copy
import inspect
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from zoo.conformance.target import one_line

SEED = 0
DRAWS = 3  # of directions, for the estimate of rounding
SAFETY = 100  # times the estimated rounding: other lengths and splits sum in another order
LOOK = (64, 17, 3)  # tokens at which a check looks first, and at the longest input


class WrongShape(Exception):
    """Raised for an output that cannot be compared."""


class Candidate:
    """A module in evaluation mode and in fp64 where it runs so, else in fp32.

    Every call is made on a fresh copy with the same random numbers, so that calls are independent of state and chance.
    Parameters that are all zero are drawn, since they would hide what lies behind them.

    Args:
        module: module, which itself is never changed.
        width: width C of its inputs.
        longest: tokens of the longest input.

    Raises:
        ValueError: if the module cannot be copied.
    """

    def __init__(self, module: nn.Module, width: int, longest: int) -> None:
        self.width, self.longest = width, longest
        try:
            self.original = copy.deepcopy(module).eval()
        except Exception as error:
            raise ValueError(
                f"the module cannot be copied, give its class or a function that makes one that can: {one_line(error)}"
            ) from error
        self.drawn = draw_zeros(self.original)
        first = next(iter([*self.original.parameters(), *self.original.buffers()]), torch.empty(0))
        self.device = first.device
        self.takes = cache(self._takes)
        self.dtype = torch.float64
        self.module = copy.deepcopy(self.original).double()
        if not self.lengths:
            self.dtype = torch.float32
            self.module = copy.deepcopy(self.original).float()
            self.takes.cache_clear()
        self.relative = self.estimate_tolerance() if self.lengths else torch.finfo(self.dtype).eps * SAFETY

    @property
    def lengths(self) -> list[int]:
        """Lengths at which a check looks first, of those that the module takes, the longest first."""
        known = [n for n in sorted({*LOOK, self.longest}, reverse=True) if n <= self.longest and self.takes(n)]
        return known or [n for n in range(self.longest, 0, -1) if self.takes(n)][:1]

    def _takes(self, length: int) -> bool:
        """Whether a plain input of ``length`` tokens gives an output of its shape."""
        x = self.draw(1, length)
        try:
            y = self.run(x)
        except Exception:
            return False
        return isinstance(y, Tensor) and y.shape == x.shape and y.dtype == x.dtype

    def draw(self, batch: int, length: int) -> Tensor:
        """Draws normal inputs ``(B, T, C)``, the same for the same shape."""
        random = torch.Generator().manual_seed(SEED)
        return torch.randn(batch, length, self.width, generator=random, dtype=torch.float64).to(self.device, self.dtype)

    def draw_like(self, x: Tensor, seed: int = 1) -> Tensor:
        """Draws other normal numbers of the shape of ``x``."""
        random = torch.Generator().manual_seed(SEED + seed)
        return torch.randn(x.shape, generator=random, dtype=torch.float64).to(x)

    def fresh(self) -> nn.Module:
        """Returns a fresh copy of the module."""
        torch.manual_seed(SEED)
        return copy.deepcopy(self.module)

    def run(self, x: Tensor, grad: bool = False, **arguments: Any) -> Tensor:
        """Returns the outputs of a fresh copy."""
        with torch.set_grad_enabled(grad):
            return self.fresh()(x, **arguments)

    def offers(self, *arguments: str) -> bool:
        """Returns whether the forward pass takes these keywords by name."""
        return set(arguments) <= set(inspect.signature(self.module.forward).parameters)

    @property
    def offers_cache(self) -> bool:
        """Whether the module has ``new_cache(batch_size)`` and ``forward(x, cache=)``."""
        return callable(getattr(self.module, "new_cache", None)) and self.offers("cache")

    def new_cache(self, module: nn.Module, batch: int) -> Any:
        """Returns an empty cache of ``module``, in the dtype and on the device of the inputs if it takes these."""
        make: Callable[..., Any] = module.new_cache  # type: ignore[assignment]
        known = inspect.signature(make).parameters
        where = {"device": self.device, "dtype": self.dtype}
        return make(batch, **{key: value for key, value in where.items() if key in known})

    def run_pieces(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """Returns the outputs of ``x`` in pieces through a new cache, joined."""
        module = self.fresh()
        with torch.no_grad():
            held = self.new_cache(module, x.shape[0])
            return torch.cat([module(piece, cache=held) for piece in x.split(list(sizes), 1)], 1)

    def estimate_tolerance(self) -> float:
        """Estimates by how much equal outputs may differ, relative to the largest: SAFETY times the module's rounding.

        The rounding is the second difference along a direction of the size of the inputs, at a step of sqrt(eps): for a
        smooth function it is about eps, and more where the module rounds inside to a narrower dtype.
        """
        eps = torch.finfo(self.dtype).eps
        x = self.draw(1, self.lengths[0])
        y, found = self.run(x), []
        for seed in range(DRAWS):
            step = eps**0.5 * self.draw_like(x, 1 + seed)
            second = self.run(x + step) + self.run(x - step) - 2 * y
            found.append(float(second.abs().max() / y.abs().max().clamp_min(torch.finfo(self.dtype).tiny)))
        return SAFETY * max(eps, statistics.median(found))

    def difference(self, got: Tensor, want: Tensor) -> tuple[tuple[int, int], float] | None:
        """Returns row and token of the first output that differs, and by how much; None if all are equal.

        Args:
            got: ``(B, T, C)``.
            want: of the same shape; the tolerance is relative to its largest number.
        """
        if got.shape != want.shape:
            raise WrongShape(f"the output has shape {tuple(got.shape)}, expected {tuple(want.shape)}")
        apart = (got - want).abs().amax(-1)
        allowed = self.relative * want.abs().max() if want.numel() else 0.0
        wrong = (~(apart <= allowed)).nonzero()
        if not len(wrong):
            return None
        row, token = wrong[wrong[:, 1].argmin()].tolist()
        return (row, token), float(apart[row, token])


def draw_zeros(module: nn.Module) -> list[str]:
    """Draws every parameter that is all zero, and returns their names."""
    names = [name for name, p in module.named_parameters() if p.numel() and p.is_floating_point() and not p.any()]
    random = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name in names:
            parameter = module.get_parameter(name)
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=random, dtype=torch.float64))
    return names


def say(sizes: Iterable[int]) -> str:
    """Formats numbers as words of a sentence: ``1, 2 and 5``."""
    *most, last = map(str, sizes)
    return f"{', '.join(most)} and {last}" if most else last
