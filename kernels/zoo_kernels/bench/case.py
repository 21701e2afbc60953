"""A case: one call of a public function on random arrays, which is timed beside other implementations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.bench.clock import Run
from zoo_kernels.bench.record import BACKWARD, FORWARD, Shape

Arrays = dict[str, Any]  # arguments by name, and as "upstream" the gradient that arrives at the output
Form = Callable[..., Any]  # takes the arguments of a case by name
Forms = dict[str, Form]  # by implementation
CACHE = 200e6  # bytes, several times the level-2 cache of a GPU


@dataclass(frozen=True)
class Case:
    """One call of a public function.

    Attributes:
        name: of the row.
        shape: of the inputs.
        function: takes the arrays by name, and ``backend=``, and gives an output.
        sizes: of the random arrays in the type that is looked at; keys have unit length, as delta rules need.
        other: makes further arguments on a device: decays, states, layouts.
        followed: names of the arguments that want gradients.
    """

    name: str
    shape: Shape
    function: Form
    sizes: Mapping[str, Sequence[int]]
    other: Callable[[torch.device], Arrays] = lambda device: {}
    followed: tuple[str, ...] = ("q", "k", "v")

    @classmethod
    def whole(
        cls, name: str, shape: Shape, function: Form, other: Callable[[torch.device], Arrays], *more: str
    ) -> Case:
        """A call over whole sequences, which has gradients of q, k, v and ``more``."""
        batch, length, heads, width = shape[:4]
        queries, keys = (batch, length, heads, width), (batch, length, shape.key_heads, width)
        sizes = {"q": queries, "k": keys, "v": keys, "upstream": queries}
        return cls(name, shape, function, sizes, other, ("q", "k", "v", *more))

    def draw(self, device: torch.device, dtype: torch.dtype) -> list[Arrays]:
        """The arrays, in as many copies as the cache of a GPU needs to forget them; the same at each call."""
        torch.manual_seed(0)
        nbytes = sum(torch.Size(size).numel() for size in self.sizes.values()) * dtype.itemsize
        count = 1 if device.type == "cpu" else min(16, int(CACHE // max(nbytes, 1)) + 1)
        sets, other = [], self.other(device)
        for _ in range(count):
            made = {name: torch.randn(*size, device=device, dtype=dtype) for name, size in self.sizes.items()}
            sets.append({n: F.normalize(x, dim=-1) if n == "k" else x for n, x in made.items()} | other)
        return sets

    def passes(self, form: Form, sets: Sequence[Arrays], direction: str) -> Run:
        """The function to time: a forward pass over set number i, round and round, or the gradients, or both."""
        if direction == FORWARD:
            inputs = [given(each) for each in sets]  # some peers look at requires_grad alone
            return torch.no_grad()(lambda i: form(**inputs[i % len(inputs)]))
        leaves = [given(each, *self.followed) for each in sets]
        kept: list[Tensor] = []

        def run(i: int) -> tuple[Tensor, ...]:
            if direction == BACKWARD and not kept:
                kept.extend(form(**each) for each in leaves)
            i %= len(sets)
            output, wanted = kept[i] if kept else form(**leaves[i]), [leaves[i][name] for name in self.followed]
            # not every peer has all arguments
            return torch.autograd.grad(output, wanted, sets[i]["upstream"], retain_graph=bool(kept), allow_unused=True)

        return run


def given(arrays: Arrays, *followed: str) -> Arrays:
    """The arguments among the arrays, on their own; those that are ``followed`` want gradients."""
    x = {n: a.detach() if isinstance(a, Tensor) else a for n, a in arrays.items() if n != "upstream"}
    return x | {name: x[name].requires_grad_() for name in followed}
