"""Checks of every family's calls against its reference: sizes, halves, repeats, graphs, arrays of many numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.record import BACKWARD, BOTH, CHECK, FORWARD, REPEATS, Record, Shape
from zoo_kernels.bench.registry import CHECKED, piece
from zoo_kernels.tools.calls import SHORT, Call, Inputs, Outputs, Size, every_call, followed, normal
from zoo_kernels.tools.check import GRADIENT, FormCheck

LENGTHS = (1, 2, 15, 63, 64, 65, 100, 127, 129, 1000)
OF_STEPS = (1, 17, 64, 129, 1000, 4097, 65_537)
STRIDE = 5  # a dry run takes every fifth call
KEEP = 64  # last tokens, which are compared where arrays are large


class Checked(NamedTuple):
    """A call that is compared with its reference, or with itself.

    Attributes:
        call: what is called.
        size: of its inputs.
        repeats: compare so many further calls with the first, bit by bit, and not with the reference.
        graph: the call is replayed from a CUDA graph that was captured with other inputs.
        cut: cuts the inputs of the reference, as in :class:`zoo_kernels.tools.check.FormCheck`.
        part: takes a part of the outputs, as there.
    """

    call: Call
    size: Size
    repeats: int = 0
    graph: bool = False
    cut: Callable[[Inputs], Inputs] = dict
    part: Callable[[Outputs], Outputs] = dict

    @property
    def name(self) -> str:
        """Name of the row."""
        kind = ", repeats" if self.repeats else ", CUDA graph" if self.graph else ""
        return f"{self.call.family} {self.call.name}{kind}"

    @property
    def dtype(self) -> str:
        """Name of the type of the inputs."""
        return str(self.size.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.name} T{self.size.length} D{self.size.width} {self.dtype}"

    def run(self, bench: Bench) -> None:
        """Compare, and record the worst block of the outputs and that of the gradients; an excess is an error too."""
        shape = Shape(self.size.batch, self.size.length, self.size.heads, self.size.width)
        row, ours = Record(self.name, shape, self.dtype, "ours", BOTH), bench.ours(self.call.run)
        if self.repeats:
            inputs = self.call.inputs(self.size)
            first, others = ours(inputs), (ours(inputs) for _ in range(self.repeats))
            different = sum(not torch.equal(x, other[n]) for other in others for n, x in first.items())
            bench.add(row, REPEATS, different, "", "<= 0")
            return
        check = FormCheck(self.call, self.size, self.cut, self.part)
        worst = check.worst(_replayed(ours, check.inputs) if self.graph else ours(check.inputs))
        for direction in (FORWARD, BACKWARD):
            found = [one for one in worst if one.array.startswith(GRADIENT) == (direction == BACKWARD)]
            if found:
                bad = max(found, key=lambda one: one.ratio)
                if bad.ratio > 1:
                    bench.fail(f"{self}, {direction}", f"{bad.ratio:.3g} times the allowance in {bad.array}")
                bench.add(row._replace(direction=direction), CHECK, bad.ratio, "", "<= 1")


def is_step(call: Call) -> bool:
    """Whether a call is a step of decoding."""
    return call.name.startswith("step")


def in_halves(bench: Bench, checks: Iterable[Checked]) -> Iterator[Checked]:
    """The checks on the device in every 16-bit type that kernels are checked in; the interpreter's bf16 is wrong."""
    halves, known = (torch.float16,) if bench.dry else (torch.bfloat16, torch.float16), list(checks)
    for dtype in halves:
        yield from (one._replace(size=one.size._replace(dtype=dtype, device=bench.device.type)) for one in known)


def sizes(call: Call, plainest: bool) -> Iterator[Size]:
    """Sizes that a call is checked at: all of the plainest one, several of the main ones."""
    base = call.length if call.length > SHORT else 129
    lengths = (OF_STEPS if is_step(call) else LENGTHS) if plainest else (65, 1000) if call.main else ()
    for length in dict.fromkeys((base, *lengths)):  # short ones hold too few numbers for a fair allowance
        yield Size(64, length, 2 if length >= 63 else 16)
    if call.main:
        yield from (Size(width, length) for width in (128, 256) for length in (base, 1000))


def checks(bench: Bench, wanted: Callable[[Call], bool]) -> Iterator[Checked]:
    """Checks of those calls that are wanted: the plainest first, the harder ones last; dry: some, once."""
    calls = [call for harder in (False, True) for call in every_call(harder) if wanted(call)]
    if bench.dry:
        yield from (Checked(call, Size(16, 20, 2)) for call in calls[::STRIDE])
        return
    seen: set[str] = set()
    for call in calls:
        yield from (Checked(call, size) for size in sizes(call, call.family not in seen))
        seen.add(call.family)


def whole(bench: Bench, family: str) -> Iterator[Checked]:
    """Whole sequences of a family, forward and backward, and that a repeat of the plainest gives the same bits."""
    yield from in_halves(bench, checks(bench, lambda call: call.family == family and not is_step(call)))
    plainest = next(call for call in every_call() if call.family == family)
    size, repeats = bench.pick((Size(128, 3000, 2, 8), 20), (Size(16, 20, 1, 2), 1))
    yield from in_halves(bench, [Checked(plainest, size, repeats)])


@piece("cuda", f"{CHECKED}decode")
def decoding(bench: Bench) -> Iterator[Checked]:
    """Steps of decoding, over ragged rows."""
    yield from in_halves(bench, checks(bench, is_step))
    steps = {call.family: call for call in reversed(every_call()) if is_step(call)}
    size = bench.pick(Size(128, 300, 3, 8), Size(16, 20, 3, 2))
    yield from in_halves(bench, (Checked(call, size, graph=True) for call in steps.values()))


def large(
    bench: Bench, family: str, name: str, function: Callable[..., Tensor], keys: int, queries: int = KEEP
) -> Iterator[Checked]:
    """The last tokens of the last head of more than 2^31 numbers, which offsets of 32 bits would not reach.

    Args:
        bench: the benchmark that runs.
        family: name of the family of the call.
        name: name of the call.
        function: gives an output from q, k, v and ``backend``.
        keys: number of last keys that the checked tokens depend on.
        queries: number of last queries that the checked tokens depend on.
    """

    def inputs(size: Size) -> Inputs:
        shape = size.batch, size.length, size.heads, size.width
        return {name: normal(size, *shape, seed=seed) for seed, name in enumerate(("q", "k", "v", "upstream"))}

    def run(inputs: Inputs, backend: str) -> Outputs:
        given = followed(inputs, ("q", "k", "v"))
        upstream = given.pop("upstream")
        output = function(**given, backend=backend)
        grads = torch.autograd.grad(output, list(given.values()), upstream)
        return {"output": output.detach()} | {GRADIENT + name: x for name, x in zip("qkv", grads)}

    def cut(x: Inputs) -> Inputs:
        return {n: array[:, -(keys if n in ("k", "v") else queries) :, -1:] for n, array in x.items()}

    def part(x: Outputs) -> Outputs:
        return {name: array[:, -KEEP:, -1:] for name, array in x.items()}

    call = Call(f"large, {name}", inputs, run, family=family)
    size = bench.pick(Size(128, 140_000, 1, 128), Size(16, 140, 1, 2))
    yield from in_halves(bench, [Checked(call, size, cut=cut, part=part)])


def _replayed(call: Callable[[Inputs], Outputs], arrays: Inputs) -> Outputs:
    """The call on ``arrays`` by a graph that was captured with others; without a GPU a second call on their memory."""
    given = {name: x for name, x in arrays.items() if isinstance(x, Tensor)}
    held = arrays | {name: torch.zeros_like(x) for name, x in given.items()}

    def renew() -> None:
        for name, x in given.items():
            held[name].copy_(x)

    if not any(x.is_cuda for x in given.values()):
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
