"""The contract of correctness: an error of at most twice (that of plain low precision + eps * max) in every block.

The truth is the family's reference in fp64, through the same public function, so that a case is written once; this is
enough because tests/kernels compares the references, at all options, with formulas of its own. Plain low precision is
that reference with the operands and results of every matrix product rounded; of a step, which has no gradient, it is
the PyTorch form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.clock import captured
from zoo_kernels.bench.record import BOTH, CHECK, REPEATS, Row, Shape
from zoo_kernels.tools.calls import raised

Arrays = dict[str, Any]  # arguments, outputs and gradients by name
PACKED = (1, 7, 64, 9, 2000)  # lengths of documents
KEEP = 64  # last tokens, which are compared where arrays are large
LENGTHS = (1, 2, 15, 63, 64, 65, 100, 127, 129, 1000)
BLOCK = 64  # tokens that share an allowance, with their head
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)


@dataclass(frozen=True)
class Check:
    """One call of a public function that is compared with its reference, or with itself.

    Attributes:
        name: of the row, with its family.
        shape: of the inputs.
        function: takes the arrays by name and ``backend=``, and gives an output or several.
        sizes: of the arrays in the type that is checked. "to X" is the gradient that arrives at the output X; if there
            is one, all inputs of floating point have gradients, else the call is a step.
        wide: sizes of the arrays in fp32.
        other: makes further arguments on a device: decays, documents, layouts.
        outputs: names of what the function gives.
        positive: arrays that have one sign, as feature maps give it.
        strided: heads lie outside of tokens in memory.
        cut: inputs that are enough to compute what is compared, where the reference cannot take all.
        part: what is compared, of the outputs and gradients.
        graph: the call is replayed from a CUDA graph that was captured with other inputs.
        repeats: compare so many further calls with the first, bit by bit, and not with the reference.
        dtype: of the inputs.
    """

    name: str
    shape: Shape
    function: Callable[..., Any]
    sizes: Mapping[str, Sequence[int]]
    wide: Mapping[str, Sequence[int]] = field(default_factory=dict)
    other: Callable[[torch.device], Arrays] = lambda device: {}
    outputs: tuple[str, ...] = ("output",)
    positive: tuple[str, ...] = ()
    strided: bool = False
    cut: Callable[[Arrays], Arrays] = dict
    part: Callable[[Arrays], Arrays] = dict
    graph: bool = False
    repeats: int = 0
    dtype: torch.dtype = torch.float16

    def __str__(self) -> str:
        return f"{self.name} T{self.shape.length} D{self.shape.width} {str(self.dtype).removeprefix('torch.')}"

    def run(self, bench: Bench) -> None:
        """Compare, and record the worst block."""
        arrays, ours = self.draw(bench.device), bench.ours(self.results)
        if self.repeats:
            first = ours(arrays)
            repeats = [ours(arrays) for _ in range(bench.pick(self.repeats, 1))]
            different = sum(not torch.equal(x, other[n]) for other in repeats for n, x in first.items())
            bench.add(Row(self.name, self.shape, self.dtype, "ours", BOTH), REPEATS, different, "", "<= 0")
            return
        got = self.part(_replayed(ours, arrays) if self.graph else ours(arrays))
        few = self.cut(arrays)
        truth = self.part(self.results(raised(few), backend="reference"))
        if any(name.startswith("to ") for name in arrays):
            with RoundedProducts(self.dtype):
                plain = self.results(raised(few, torch.float32), backend="reference")
        else:
            plain = self.results(few, backend="torch")
        judge(bench, self.name, self.shape, self.dtype, got, self.part(plain), truth)

    def draw(self, device: torch.device) -> Arrays:
        """The arguments, the same ones at each call."""
        torch.manual_seed(0)
        x: Arrays = {n: _normal(device, size, self.strided).to(self.dtype) for n, size in self.sizes.items()}
        x |= {n: _normal(device, size) for n, size in self.wide.items()}
        return x | {n: x[n].abs() + 0.1 for n in self.positive} | self.other(device)

    def results(self, arrays: Arrays, backend: str) -> Arrays:
        """Outputs, and gradients of the inputs where something arrives at the outputs."""
        x = {n: a.detach() if isinstance(a, Tensor) else a for n, a in arrays.items() if not n.startswith("to ")}
        reached = [name for name in self.outputs if f"to {name}" in arrays]
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


def _normal(device: torch.device, size: Sequence[int], strided: bool = False) -> Tensor:
    if strided:
        return _normal(device, (size[0], size[2], size[1], *size[3:])).transpose(1, 2)
    return torch.randn(*size, device=device)


def in_halves(bench: Bench, checks: Iterable[Check], **changed: Any) -> Iterator[Check]:
    """Checks in every type that kernels are checked in, those of one name once, with some attributes changed."""
    known = {str(check): check for check in checks}
    yield from (replace(check, dtype=dtype, **changed) for dtype in bench.halves for check in known.values())


def rows_of(bench: Bench, length: int) -> int:
    """Batch rows of a case: more for short ones, whose blocks hold too few numbers for a fair allowance."""
    return bench.pick(2 if length >= 63 else 16, 2)


def last_of(x: Arrays) -> Arrays:
    """The last tokens of the last head of every array."""
    return {name: array[:, -KEEP:, -1:] for name, array in x.items()}


class RoundedProducts(TorchDispatchMode):
    """Within it, matrix products take and give numbers of a lower precision, in backward passes too."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op not in PRODUCTS:
            return op(*args, **(kwargs or {}))
        return op(*(x.to(self.dtype).to(x.dtype) for x in args)).to(self.dtype).to(args[0].dtype)


def _replayed(call: Callable[[Arrays], Arrays], arrays: Arrays) -> Arrays:
    """The call on ``arrays`` by a graph that was captured with others; without a GPU a second call on their memory."""
    held = {name: torch.zeros_like(x) for name, x in arrays.items()}

    def renew() -> None:
        for name, x in arrays.items():
            held[name].copy_(x)

    if not any(x.is_cuda for x in held.values()):
        call(held)
        renew()
        return call(held)
    graph, output = captured(lambda: call(held))
    renew()
    graph.replay()
    return {name: x.clone() for name, x in output.items()}


class Worst(NamedTuple):
    """The largest error over its allowance, and where it is."""

    ratio: float
    place: str


def judge(bench: Bench, name: str, shape: Shape, dtype: torch.dtype, got: Arrays, plain: Arrays, truth: Arrays) -> None:
    """Record the worst block of the outputs and that of the gradients; an excess is an error too."""
    for direction, gradients in (("forward", False), ("backward", True)):
        worst = [
            _worst(tensor, plain[key], truth[key], torch.finfo(dtype).eps, key)
            for key, tensor in got.items()
            if key.startswith("grad") == gradients and truth[key].numel()
        ]
        if not worst:
            continue
        ratio, place = max(worst)
        if ratio > 1:
            bench.fail(f"{name}, {direction}", f"{ratio:.3g} times the allowance at {place}")
        bench.add(Row(name, shape, dtype, "ours", direction), CHECK, min(ratio, 1e9), "", "<= 1")


def _worst(got: Tensor, plain: Tensor, truth: Tensor, eps: float, key: str) -> Worst:
    if got.shape != truth.shape:
        return Worst(1e9, f"{key}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}")
    got, plain, truth = (x.detach().double() for x in (got, plain, truth))
    if key == "lse":  # -inf where there is no key, in both
        if not torch.equal(got == -torch.inf, truth == -torch.inf):
            return Worst(1e9, "lse: -inf in other places than expected")
        got, plain, truth = (x.masked_fill(truth == -torch.inf, 0.0) for x in (got, plain, truth))
    if not got.isfinite().all():
        return Worst(1e9, f"{key}: not finite")
    plain = plain.nan_to_num(0.0, 0.0, 0.0)
    if "state" in key:  # (B, H, D, E) -> (B, D, H, E)
        got, plain, truth = (x.transpose(1, 2) for x in (got, plain, truth))
    allowance = 2 * (_blocks((plain - truth).abs()) + eps * _blocks(truth.abs()))
    error = _blocks((got - truth).abs())
    ratio = torch.where(error == 0, 0.0, error / allowance.clamp(min=1e-30))
    index = int(ratio.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(index), ratio.shape)]
    return Worst(float(ratio.flatten()[index].clamp(max=1e9)), f"{key} {place}")


def _blocks(x: Tensor) -> Tensor:
    """Maxima by block of tokens and head of ``(B, T, H[, X])``; of smaller arrays, the maximum."""
    if x.dim() < 3:
        return x.amax().reshape(1)
    x = x.reshape(*x.shape[:3], -1).amax(-1)
    length = x.shape[1]
    padded = torch.nn.functional.pad(x, (0, 0, 0, -length % BLOCK))
    return padded.unflatten(1, (-1, BLOCK)).amax((0, 2))
