"""Rows that several families have: recurrences beside their peers over contexts, steps, and the host's time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.case import Case, Forms
from zoo_kernels.bench.clock import GRAPH, HOST
from zoo_kernels.bench.peers import fla_peer
from zoo_kernels.bench.record import BOTH, FORWARD, Shape
from zoo_kernels.bench.timed import NO_GOALS, Goals, Metric, Ratio, Timed, microseconds, of_memory

ARRAYS = {FORWARD: 4, BOTH: 11}  # q k v o; and once more q k v with do dq dk dv: the fewest rows moved per token
WITH_DECAYS = {FORWARD: 6, BOTH: 17}  # of each channel in fp32: as much as two arrays, twice, and their gradients


def all_contexts(bench: Bench) -> list[Shape]:
    """Contexts from 1k to 512k with the same number of tokens."""
    tokens, heads, width = bench.pick((512 * 1024, 16, 128), (32, 2, 16))
    return [Shape(tokens // n, n, heads, width) for n in bench.pick([1024 << i for i in range(10)], [16, 32])]


def one_context(bench: Bench, length: int) -> Shape:
    """One of the headline cases, with half as many tokens."""
    tokens, context, heads, width = bench.pick((256 * 1024, length, 16, 128), (32, 16, 2, 16))
    return Shape(tokens // context, context, heads, width)


def one_token(bench: Bench, batches: Sequence[int]) -> list[Shape]:
    """Steps of recurrences, over batch sizes."""
    heads, width = bench.pick((64, 128), (2, 16))
    return [Shape(batch, 1, heads, width) for batch in bench.pick(batches, (1,))]


def of_state(bench: Bench, shape: Shape) -> Metric:
    """Share of the measured bandwidth of a step that reads and writes an fp32 state."""
    return of_memory(bench, {FORWARD: 8 * shape.batch * shape.heads * shape.width**2})


def beside_fla(
    bench: Bench,
    case: Case,
    rule: str,
    arrays: Mapping[str, int],
    goals: Goals = NO_GOALS,
    lead: Goals = NO_GOALS,
    ratios: tuple[Ratio, ...] = (),
    always: bool = False,
) -> Timed:
    """A recurrence beside that of flash-linear-attention: its share of the bandwidth, and its lead.

    Args:
        bench: the benchmark that runs.
        case: what is timed.
        rule: its name there.
        arrays: how many arrays as large as the queries it has to move, by direction.
        goals: per cent of the bandwidth, by direction.
        lead: their time over ours, by direction.
        ratios: further ones.
        always: as in :class:`Timed`.
    """
    nbytes = case.shape.numbers * bench.dtype.itemsize
    moved = of_memory(bench, {way: count * nbytes for way, count in arrays.items()}, goals)
    over, peers = Ratio(f"over {FLA}", FLA, lead), partial(fla_peer, bench, rule)
    return Timed(case, peers, (BOTH, FORWARD), (moved,), (over, *ratios), same=FLA, always=always)


def of_step(case: Case, peers: Callable[[], Forms], *metrics: Metric, goals: Goals = NO_GOALS) -> Iterator[Timed]:
    """A step by the GPU's time, with goals in microseconds, by the host's, and inside a CUDA graph."""
    on_gpu = microseconds("GPU time", goals=goals)
    yield Timed(case, peers, (FORWARD,), (on_gpu, *metrics))
    for how, clock, told in (("eager", HOST, microseconds("host time")), ("in a CUDA graph", GRAPH, on_gpu)):
        one = replace(case, name=f"{case.name}, {how}")
        yield Timed(one, directions=(FORWARD,), metrics=(told,), clock=clock)


def of_host(
    bench: Bench, peers: Callable[[], Forms], whole: Callable[[Shape], Case], step: Callable[[Shape], Case]
) -> Iterator[Timed]:
    """The host's time of calls over whole sequences and of steps, on arrays so small that the GPU does not matter."""
    told, shape = microseconds("per call"), bench.pick(Shape(1, 64, 1, 64), Shape(1, 16, 2, 16))
    yield Timed(whole(shape), peers, (FORWARD, BOTH), (told._replace(goals={FORWARD: "<= 60"}),), clock=HOST)
    yield Timed(step(shape), directions=(FORWARD,), metrics=(told,), clock=HOST)
