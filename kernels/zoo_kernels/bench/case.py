"""A case: one call of a public function on random arrays, which is compared with its reference, or timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench.clock import Run
from zoo_kernels.bench.record import BACKWARD, FORWARD, Shape

Arrays = dict[str, Any]  # arguments, outputs and gradients by name
Form = Callable[..., Any]  # takes the arguments of a case by name
CACHE = 200e6  # bytes, several times the level-2 cache of a GPU
PACKED = (1, 7, 64, 9, 2000)  # lengths of documents


@dataclass(frozen=True)
class Case:
    """One call of a public function.

    Attributes:
        name: of the row.
        shape: of the inputs.
        function: takes the arrays by name, and ``backend=``, and gives an output or several.
        sizes: of the arrays in the type that is looked at. "to X" is the gradient that arrives at the output X; a call
            without one is a step, which has no gradient.
        wide: sizes of the arrays in fp32.
        other: makes further arguments on a device: decays, documents, layouts.
        outputs: names of what the function gives.
        positive: arrays that have one sign, as feature maps give it.
        strided: heads lie outside of tokens in memory.
    """

    name: str
    shape: Shape
    function: Form
    sizes: Mapping[str, Sequence[int]]
    wide: Mapping[str, Sequence[int]] = field(default_factory=dict)
    other: Callable[[torch.device], Arrays] = lambda device: {}
    outputs: tuple[str, ...] = ("output",)
    positive: tuple[str, ...] = ()
    strided: bool = False

    def draw(self, device: torch.device, dtype: torch.dtype) -> Arrays:
        """The arguments, and what arrives at the outputs; the same at each call."""
        torch.manual_seed(0)
        x = self._drawn(device, dtype) | {n: torch.randn(*size, device=device) for n, size in self.wide.items()}
        return x | {n: x[n].abs() + 0.1 for n in self.positive} | self.other(device)

    def copies(self, device: torch.device, dtype: torch.dtype) -> list[Arrays]:
        """Returns as many copies of the arrays as make the cache of a GPU forget them."""
        first = self.draw(device, dtype)
        nbytes = max(sum(first[n].nbytes for n in self.sizes), 1)
        count = 1 if device.type == "cpu" else min(16, int(CACHE // nbytes) + 1)
        return [first, *(first | self._drawn(device, dtype) for _ in range(count - 1))]

    def _drawn(self, device: torch.device, dtype: torch.dtype) -> Arrays:
        def normal(b: int, t: int, h: int, *rest: int) -> Tensor:
            size = (b, h, t, *rest) if self.strided else (b, t, h, *rest)
            x = torch.randn(size, device=device)
            return (x.transpose(1, 2) if self.strided else x).to(dtype)

        return {name: normal(*size) for name, size in self.sizes.items()}

    def results(self, arrays: Arrays, backend: str) -> Arrays:
        """Outputs, and gradients of all inputs where something arrives at the outputs."""
        reached = [name for name in self.outputs if f"to {name}" in arrays]
        x = given(arrays)
        leaves = {n: a for n, a in x.items() if reached and isinstance(a, Tensor) and a.is_floating_point()}
        for leaf in leaves.values():
            leaf.requires_grad_()
        found = self.function(**x, backend=backend)
        outputs: Arrays = dict(zip(self.outputs, found if isinstance(found, tuple) else (found,)))
        if not reached:
            return outputs
        arriving = [arrays[f"to {n}"].to(outputs[n].dtype).masked_fill(outputs[n] == -torch.inf, 0) for n in reached]
        ends = [outputs[n] for n in reached]
        grads = torch.autograd.grad(ends, list(leaves.values()), arriving, allow_unused=True, materialize_grads=True)
        return {n: o.detach() for n, o in outputs.items()} | {f"grad {n}": g for n, g in zip(leaves, grads)}


def given(arrays: Arrays, *followed: str) -> Arrays:
    """The arguments among the arrays, on their own; those that are ``followed`` want gradients."""
    x = {n: a.detach() if isinstance(a, Tensor) else a for n, a in arrays.items() if not n.startswith("to ")}
    return x | {name: x[name].requires_grad_() for name in followed}


def passes(form: Form, sets: Sequence[Arrays], direction: str) -> Run:
    """The function to time: a forward pass over set number i, round and round, or the gradients of q, k, v, or both."""
    if direction == FORWARD:
        inputs = [given(each) for each in sets]  # some peers look at requires_grad alone
        return torch.no_grad()(lambda i: form(**inputs[i % len(inputs)]))
    leaves = [given(each, "q", "k", "v") for each in sets]
    kept: list[Tensor] = []

    def run(i: int) -> tuple[Tensor, ...]:
        if direction == BACKWARD and not kept:
            kept.extend(form(**each) for each in leaves)
        i %= len(sets)
        output = kept[i] if kept else form(**leaves[i])
        return torch.autograd.grad(output, [leaves[i][n] for n in "qkv"], sets[i]["to output"], retain_graph=bool(kept))

    return run


def documents_of(lengths: tuple[int, ...], batch: int, length: int, device: torch.device) -> Tensor | None:
    """Ids of tokens ``(B, T)``, neither sorted nor dense; the first document is shorter by row. None for no lengths."""
    if not lengths:
        return None
    ids = torch.cat([torch.full((n,), (7 * i + 3) % 11) for i, n in enumerate(lengths)])
    ids = torch.nn.functional.pad(ids, (0, max(0, length + batch - len(ids))), value=99)
    return torch.stack([ids[row : row + length] for row in range(batch)]).to(device)


def listed_blocks(blocks: int, near: int, first: int = 0, random: int = 0, heads: int = 1) -> Tensor:
    """Blocks of keys that each block of queries lists: ``(1, heads, blocks, blocks)``.

    The ``near`` latest (a window), the ``first`` ones (with a window: Longformer, arXiv:2004.05150), and ``random``
    earlier ones by head (with both: BigBird, arXiv:2007.14062).
    """
    i = torch.arange(blocks)
    distance = i[:, None] - i
    base = ((distance >= 0) & ((distance < near) | (i < first))).expand(1, heads, -1, -1)
    scores = torch.rand(base.shape, generator=torch.Generator().manual_seed(0))
    best = scores.masked_fill(base | (distance < 0), -1.0).topk(min(random, blocks), dim=-1)
    return base | torch.zeros_like(base).scatter(-1, best.indices, best.values >= 0)
