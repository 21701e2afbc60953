"""Cases in which one step of decoding is compared with its formula."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

import zoo_kernels
from kernel_bench.bench import Bench, Shape
from kernel_bench.correctness import dtypes, label
from kernel_bench.judge import judge
from kernel_bench.linear_cases import decays_of
from kernel_bench.plain import plain_softmax
from zoo_kernels import NormalizedState


@dataclass(frozen=True)
class StepCase:
    """One step over a cache of rows of different lengths.

    In a ring the sinks stay in front, and the tokens after them take the places behind, round and round.
    """

    name: str
    capacity: int = 1000
    width: int = 128
    heads: int = 8
    groups: int = 2
    window: int | None = None
    sink_tokens: int = 0
    sink_logits: bool = False
    ring: bool = False
    batch: int = 3
    graph: bool = False

    def __str__(self) -> str:
        return f"step softmax {self.name} context {self.capacity} D{self.width}"


@dataclass(frozen=True)
class LinearStepCase:
    """Several steps of linear attention, one after the other."""

    name: str
    decay: str = "slopes"
    normalize: bool = False
    width: int = 128
    heads: int = 8
    batch: int = 3
    graph: bool = False

    def __str__(self) -> str:
        return f"step linear {self.name} D{self.width}"


def step_cases(dry: bool) -> Iterator[StepCase | LinearStepCase]:
    """All cases; a dry run has one of each kind."""
    base = StepCase("gqa", 40, 16, 4) if dry else StepCase("gqa")
    linear = LinearStepCase("slopes", width=16, heads=2) if dry else LinearStepCase("slopes")
    if not dry:
        yield from (replace(base, capacity=n) for n in (1, 17, 64, 129, 4097, 65_537))
        yield from (replace(base, width=n) for n in (64, 256))
        yield replace(base, name="gqa 64:8", heads=64, groups=8, capacity=20_000)
        yield replace(base, name="large", capacity=66_000, groups=8, batch=33)  # more than 2^31 numbers
    yield from (base, replace(base, name="mha", groups=base.heads), replace(base, name="mqa", groups=1))
    yield replace(base, name="window", window=9)
    yield replace(base, name="window,sinks", window=9, sink_tokens=4)
    yield replace(base, name="sink_logits", sink_logits=True)
    yield replace(base, name="ring", ring=True, window=base.capacity)
    yield replace(base, name="ring,sinks", ring=True, window=base.capacity - 7, sink_tokens=4)
    yield from (linear, replace(linear, name="none", decay="none"), replace(linear, name="strong", decay="strong"))
    yield replace(linear, name="normalize", normalize=True)
    yield from (replace(case, name=f"{case.name}, CUDA graph", graph=True) for case in (base, linear))


def replayed(bench: Bench, run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """``run`` as a function of new inputs, from a CUDA graph that it was captured in; the CPU has none and calls it.

    A first call warms up: what it changes must be undone by the caller.
    """
    held = [x.clone() for x in inputs]
    if bench.device.type != "cuda":
        run(*held)
        return lambda *new: run(*(x.copy_(y) for x, y in zip(held, new)))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(*held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run(*held)

    def replay(*new: Tensor) -> Tensor:
        for x, y in zip(held, new):
            x.copy_(y)
        graph.replay()
        return output.clone()

    return replay


def correctness_decode(bench: Bench) -> None:
    """Both steps, over ragged batches, windows, sinks and rings."""

    cases = product(dtypes(bench), step_cases(bench.dry))
    bench.each(cases, lambda item: check_step(bench, *item), label, alike=True)


def check_step(bench: Bench, dtype: torch.dtype, case: StepCase | LinearStepCase) -> None:
    """Compare one step, or several of linear attention, with the formula."""
    if isinstance(case, StepCase):
        _check_softmax(bench, dtype, case)
    else:
        _check_linear(bench, dtype, case)


def _check_softmax(bench: Bench, dtype: torch.dtype, case: StepCase) -> None:
    step = zoo_kernels.softmax_attention_step
    if case.ring and "ring" not in inspect.signature(step).parameters:
        bench.note("softmax_attention_step knows no ring")
        return
    torch.manual_seed(0)
    b, n = case.batch, case.capacity
    q = torch.randn(b, case.heads, case.width, device=bench.device).to(dtype)
    k, v = (torch.randn(b, n, case.groups, case.width, device=bench.device, dtype=dtype) for _ in range(2))
    lengths = torch.tensor([n * i // (b - 1) for i in range(b)], device=bench.device)  # the first row has no key yet
    if case.ring:
        lengths = lengths + torch.arange(b, device=bench.device) * (n // 2)  # the last rows have gone round
    sink_logits = torch.randn(case.heads, device=bench.device) if case.sink_logits else None
    options = {"window": case.window, "sink_tokens": case.sink_tokens, "sink_logits": sink_logits}
    options |= {"ring": True} if case.ring else {}
    run = partial(bench.ours(step), **options)
    arrays = q, k, v, lengths
    got = replayed(bench, run, tuple(torch.ones_like(x) for x in arrays))(*arrays) if case.graph else run(*arrays)
    place = torch.arange(n, device=bench.device)
    filled = place < lengths[:, None]
    last = lengths[:, None] - 1
    position = place
    if case.ring:  # the newest token that has this place; the sinks keep theirs
        newest = last - (last - place) % (n - case.sink_tokens)
        position = torch.where(place < case.sink_tokens, place, newest)
    near = position > last - (n if case.window is None else case.window)
    allowed = (filled & (near | (position < case.sink_tokens)))[:, None, None]

    def plain(kind: torch.dtype, rows: slice) -> dict[str, Tensor]:
        query, key, value = (x[rows].to(kind) for x in (q[:, None], k, v))
        o, _ = plain_softmax(query, key, value, allowed[rows], None, sink_logits)
        return {"output": o}

    rows = slice(b - 1, b) if case.name == "large" else slice(0, b)
    shape = Shape(b, n, case.heads, case.width, case.groups)
    judge(bench, str(case), shape, dtype, {"output": got[rows, None]}, plain(dtype, rows), plain(torch.float64, rows))


def _check_linear(bench: Bench, dtype: torch.dtype, case: LinearStepCase) -> None:
    torch.manual_seed(0)
    size, steps = (case.batch, case.heads, case.width), 5
    tokens = [tuple(torch.randn(*size, device=bench.device).to(dtype) for _ in range(3)) for _ in range(steps)]
    if case.normalize:
        tokens = [(q.abs() + 0.1, k.abs() + 0.1, v) for q, k, v in tokens]
    decay = decays_of(case.decay, 1, 1, case.heads, bench.device)
    start = torch.randn(*size, case.width, device=bench.device).abs()
    sums = torch.randn(*size, device=bench.device).abs()
    step = bench.ours(zoo_kernels.linear_attention_step)

    def ours() -> dict[str, Tensor]:
        state = NormalizedState(start.clone(), sums.clone()) if case.normalize else start.clone()

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return step(q, k, v, decay, state, scale=0.25, normalize=case.normalize)

        if case.graph and isinstance(state, Tensor):
            run = replayed(bench, run, tokens[0])
            state.copy_(start)
        o = [run(*token) for token in tokens]
        return {"output": torch.stack(o, 1), "last state": state.s if isinstance(state, NormalizedState) else state}

    def plain(kind: torch.dtype) -> dict[str, Tensor]:
        s, z, found = start.to(kind), sums.to(kind), []
        keep = torch.ones(case.heads, device=bench.device) if decay is None else decay.exp()
        for q, k, v in tokens:
            q, k, v = (x.to(kind) for x in (q, k, v))
            s = (s * keep[:, None, None] + k[..., None] * v[..., None, :]).to(kind)
            z = (z * keep[:, None] + k).to(kind)
            o = (q[..., None, :] @ s)[..., 0, :] * 0.25
            found.append(o / (q * z).sum(-1, keepdim=True).clamp(min=1e-6) if case.normalize else o)
        return {"output": torch.stack(found, 1), "last state": s}

    shape = Shape(case.batch, steps, case.heads, case.width)
    judge(bench, str(case), shape, dtype, ours(), plain(dtype), plain(torch.float64))
