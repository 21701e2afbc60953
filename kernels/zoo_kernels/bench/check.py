"""The contract of correctness: an error of at most twice (that of plain low precision + eps * max) in every block.

The truth is the family's reference in fp64, through the same public function, so that a case is written once; this is
enough because tests/kernels compares the references, at all options, with formulas of its own. Plain low precision is
that reference with the operands and results of every matrix product rounded; of a step it is the PyTorch form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import Arrays, Case
from zoo_kernels.bench.record import BOTH, CHECK, REPEATS, Row
from zoo_kernels.tools.calls import raised

KEEP = 64  # last tokens, which are compared where arrays are large
LENGTHS = (1, 2, 15, 63, 64, 65, 100, 127, 129, 1000)
BLOCK = 64  # tokens that share an allowance, with their head
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)


@dataclass(frozen=True)
class Check:
    """A case that is compared with its reference, or with itself.

    Attributes:
        case: what is called.
        dtype: of the inputs.
        cut: inputs that are enough to compute what is compared, where the reference cannot take all.
        part: what is compared, of the outputs and gradients.
        graph: the call is replayed from a CUDA graph that was captured with other inputs.
        repeats: compare so many further calls with the first, bit by bit, and not with the reference.
    """

    case: Case
    dtype: torch.dtype = torch.float16
    cut: Callable[[Arrays], Arrays] = dict
    part: Callable[[Arrays], Arrays] = dict
    graph: bool = False
    repeats: int = 0

    def __str__(self) -> str:
        shape = self.case.shape
        return f"{self.case.name} T{shape.length} D{shape.width} {str(self.dtype).removeprefix('torch.')}"

    def run(self, bench: Bench) -> None:
        """Compare, and record the worst block."""
        case = self.case
        arrays, ours = case.draw(bench.device, self.dtype), bench.ours(case.results)
        if self.repeats:
            first = ours(arrays)
            repeats = [ours(arrays) for _ in range(bench.pick(self.repeats, 1))]
            different = sum(not torch.equal(x, other[n]) for other in repeats for n, x in first.items())
            bench.add(Row(case.name, case.shape, self.dtype, "ours", BOTH), REPEATS, different, "", "<= 0")
            return
        got = self.part(_replayed(ours, arrays) if self.graph else ours(arrays))
        few = self.cut(arrays)
        truth = self.part(case.results(raised(few), backend="reference"))
        if any(name.startswith("to ") for name in arrays):
            with RoundedProducts(self.dtype):
                plain = case.results(raised(few, torch.float32), backend="reference")
        else:
            plain = case.results(few, backend="torch")
        self.judge(bench, got, self.part(plain), truth)

    def judge(self, bench: Bench, got: Arrays, plain: Arrays, truth: Arrays) -> None:
        """Record the worst block of the outputs and that of the gradients; an excess is an error too."""
        case, eps = self.case, torch.finfo(self.dtype).eps
        for direction, gradients in (("forward", False), ("backward", True)):
            names = [n for n in got if n.startswith("grad") == gradients and truth[n].numel()]
            if not names:
                continue
            ratio, place = max(_worst(got[n], plain[n], truth[n], eps, n) for n in names)
            if ratio > 1:
                bench.fail(f"{case.name}, {direction}", f"{ratio:.3g} times the allowance at {place}")
            bench.add(Row(case.name, case.shape, self.dtype, "ours", direction), CHECK, min(ratio, 1e9), "", "<= 1")


def in_halves(bench: Bench, checks: Iterable[Check], **changed: Any) -> Iterator[Check]:
    """Checks in every type that kernels are checked in, those of one name once, with some attributes changed."""
    known = {str(check): check for check in checks}
    yield from (replace(check, dtype=dtype, **changed) for dtype in bench.halves for check in known.values())


def rows_of(bench: Bench, length: int) -> int:
    """Batch rows of a case: more for short ones, whose blocks hold too few numbers for a fair allowance."""
    return bench.pick(2 if length >= 63 else 16, 2)


def large(case: Case, **spans: int) -> Check:
    """The last tokens of the last head of a case, whose last numbers offsets of 32 bits would not reach.

    ``spans``: last tokens of an array on which they depend, if more than those that are compared.
    """

    def part(x: Arrays) -> Arrays:
        return {n: a[:, -KEEP:, -1:] for n, a in x.items() if a.dim() > 2}

    def cut(x: Arrays) -> Arrays:
        heads = {n: a[-1:] if isinstance(a, Tensor) else a for n, a in x.items()}
        return heads | {n: x[n][:, -spans.get(n, KEEP) :, -1:] for n in case.sizes}

    return Check(case, cut=cut, part=part)


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
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call(held)  # to warm up
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call(held)
    renew()
    graph.replay()
    return {name: x.clone() for name, x in output.items()}


def _worst(got: Tensor, plain: Tensor, truth: Tensor, eps: float, key: str) -> tuple[float, str]:
    """The largest error over its allowance, and where it is."""
    if got.shape != truth.shape:
        return 1e9, f"{key}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}"
    got, plain, truth = (x.detach().double() for x in (got, plain, truth))
    if key == "lse":  # -inf where there is no key, in both
        if not torch.equal(got == -torch.inf, truth == -torch.inf):
            return 1e9, "lse: -inf in other places than expected"
        got, plain, truth = (x.masked_fill(truth == -torch.inf, 0.0) for x in (got, plain, truth))
    if not got.isfinite().all():
        return 1e9, f"{key}: not finite"
    plain = plain.nan_to_num(0.0, 0.0, 0.0)
    if "state" in key:  # (B, H, D, E) -> (B, D, H, E)
        got, plain, truth = (x.transpose(1, 2) for x in (got, plain, truth))
    allowance = 2 * (_blocks((plain - truth).abs()) + eps * _blocks(truth.abs()))
    error = _blocks((got - truth).abs())
    ratio = torch.where(error == 0, 0.0, error / allowance.clamp(min=1e-30))
    place = [int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape)]
    return float(ratio.max().clamp(max=1e9)), f"{key} {place}"


def _blocks(x: Tensor) -> Tensor:
    """Maxima by block of tokens and head of ``(B, T, H[, X])``; of smaller arrays, the maximum."""
    if x.dim() < 3:
        return x.amax().reshape(1)
    x = x.reshape(*x.shape[:3], -1).amax(-1)
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[1] % BLOCK))
    return padded.unflatten(1, (-1, BLOCK)).amax((0, 2))
