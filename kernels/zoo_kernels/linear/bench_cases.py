"""What zoo_kernels.bench checks and times of linear attention: whole sequences, and steps of decoding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench import timed
from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.case import PACKED, Arrays, Case, documents_of
from zoo_kernels.bench.check import KEEP, LENGTHS, Check, in_halves, large, rows_of
from zoo_kernels.bench.clock import HOST, GraphClock
from zoo_kernels.bench.peers import fla_peer, sdpa
from zoo_kernels.bench.record import BOTH, FORWARD, Row, Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.bench.timed import NO_GOALS, Goals, Ratio, Timed, Together, each_way, microseconds
from zoo_kernels.linear.api import NormalizedState, State, linear_attention, linear_attention_step

ARRAYS = {FORWARD: 4, BOTH: 11}  # q k v o; and once more q k v with do dq dk dv: the fewest rows moved per token
ROOFLINE = {FORWARD: ">= 50", BOTH: ">= 35"}  # per cent
FLAT = 128 * 1024  # tokens up to which the speed must not depend on the context
CPU_LENGTHS = {"full": [512 << i for i in range(8)], "quick": [512, 1024, 2048, 4096]}
CPU_RATIOS = {512: ">= 2", 8192: ">= 16"}


def decays(kind: str, batch: int, length: int, heads: int, device: torch.device) -> Tensor | None:
    """Log decays, fp32: ``(H,)`` or, by token, ``(B, T, H)``, or None.

    ``slopes`` are those of lightning attention's first layer, ``-2^(-8 (h + 1) / H)``.
    """
    if kind == "token":
        return -20 * torch.rand(batch, length, heads, device=device) ** 4
    i = torch.arange(heads, dtype=torch.float32, device=device)
    kinds = {"slopes": -(2 ** (-8 * (i + 1) / heads)), "paper": -7 * i / heads, "unit": 0 * i - 1, "strong": 0 * i - 20}
    return kinds.get(kind)


def _parted(state: Tensor, normalize: bool) -> State:
    """A state that is one column wider with a normalizer, as two arrays."""
    return NormalizedState(state[..., :-1].contiguous(), state[..., -1].contiguous()) if normalize else state


def _joined(state: State | None) -> Tensor:
    assert state is not None
    return torch.cat([state.s, state.z[..., None]], -1) if isinstance(state, NormalizedState) else state


def attention(
    name: str,
    shape: Shape,
    *,
    decay: str = "slopes",
    value: int = 0,
    documents: tuple[int, ...] = (),
    strided: bool = False,
    states: bool = False,
    **options: Any,
) -> Case:
    """A call over whole sequences.

    Args:
        name: name of the case.
        shape: shape of the case.
        decay: kind of the decays.
        value: width of the values, if another than the keys'.
        documents: lengths of packed documents.
        strided: whether heads lie outside of tokens in memory.
        states: from one state to another; else the output alone.
        options: options of the function.
    """
    batch, length, heads, width = shape[:4]
    value, normalize = value or width, options.get("normalize", False)
    sizes = dict.fromkeys("qk", shape[:4]) | dict.fromkeys(("v", "to output"), (batch, length, heads, value))
    ends = dict.fromkeys(("state", "to last state"), (batch, heads, width, value + normalize)) if states else {}

    def call(state: Tensor | None = None, **x: Any) -> Tensor | tuple[Tensor, Tensor]:
        start = None if state is None else _parted(state, normalize)
        output, last = linear_attention(**x, **options, initial_state=start, return_state=states)
        return (output, _joined(last)) if states else output

    def other(device: torch.device) -> Arrays:
        packed = documents_of(documents, batch, length, device)
        return {"log_decay": decays(decay, batch, length, heads, device), "documents": packed}

    positive = ("q", "k", "state") if normalize else ()
    return Case(name, shape, call, sizes, ends, other, ("output", "last state")[: 1 + states], positive, strided)


@piece("cuda", "correctness_linear")
def whole(bench: Bench) -> Iterator[Check]:
    """Forward and backward, the plainest first, and that a repeat gives the same bits; dry: one of each kind."""
    base, size, count = bench.pick((129, 64, 3), (17, 16, 2))

    def at(name: str, length: int = base, width: int = size, heads: int = count, **rest: Any) -> Check:
        shape = Shape(max(2, rows_of(bench, length)), length, heads, width)
        return Check(attention(f"linear {name}", shape, states=True, scale=width**-0.5, **rest))

    def cases() -> Iterator[Check]:
        yield from (at("slopes", length) for length in bench.pick(LENGTHS, (base,)))
        yield from (at(decay, decay=decay) for decay in ("none", "slopes", "paper", "strong", "token"))
        yield at("documents", documents=PACKED)
        yield from (at(f"documents,{decay}", documents=PACKED, decay=decay) for decay in ("strong", "token"))
        yield at("normalize", normalize=True)
        yield at("normalize,documents", normalize=True, documents=PACKED)
        yield at("strided", strided=True)
        yield from (at(name, algorithm=name) for name in ("parallel", "chunk", "scan"))
        yield at("D,E", width=size - 4, value=size // 2 + 8)
        if not bench.dry:
            yield from (at("slopes", width=wide) for wide in (128, 256))
            yield from (at(kind, n, decay=kind) for kind in ("none", "strong", "token") for n in (1, 63, 65, 1000))
            yield from (at("token", 1000, wide, decay="token") for wide in (64, 128, 256))
            yield at("long", 4097, heads=2)

    yield from in_halves(bench, cases())
    length, width, heads = bench.pick((3000, 128, 8), (20, 16, 2))
    yield from in_halves(bench, [at("repeats", length, width, heads)], repeats=20)


@piece("cuda", "correctness_large")
def many_numbers(bench: Bench) -> Iterator[Check]:
    """More than 2^31; the decay is so strong that what lies further back than the span has no weight."""
    shape, span = bench.pick((Shape(1, 140_000, 128, 128), KEEP + 192), (Shape(1, 140, 2, 16), KEEP + 32))
    case = attention("large linear", shape, decay="unit")
    yield from in_halves(bench, [large(case, **dict.fromkeys(case.sizes, span))])


def _steps(name: str, shape: Shape, decay: str = "slopes", normalize: bool = False, graph: bool = False) -> Check:
    """Several steps of decoding, one after the other."""
    batch, _, heads, width, _ = shape

    def call(q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor | None, backend: str) -> Any:
        s = _parted(state.clone(), normalize)
        how: dict[str, Any] = {"scale": 0.25, "normalize": normalize, "backend": backend}
        tokens = zip(q.unbind(1), k.unbind(1), v.unbind(1))
        outputs = [linear_attention_step(*token, log_decay, s, **how) for token in tokens]
        return torch.stack(outputs, 1), _joined(s)

    sizes, wide = dict.fromkeys("qkv", shape[:4]), {"state": (batch, heads, width, width + normalize)}
    positive = ("q", "k", "state") if normalize else ("state",)

    def other(device: torch.device) -> Arrays:
        return {"log_decay": decays(decay, 1, 1, heads, device)}

    case = Case(f"step linear {name}", shape, call, sizes, wide, other, ("output", "last state"), positive)
    return Check(case, graph=graph)


@piece("cuda", "correctness_decode")
def decoding(bench: Bench) -> Iterator[Check]:
    """Steps of decoding."""
    shape = bench.pick(Shape(3, 5, 8, 128), Shape(3, 5, 2, 16))
    checks = [_steps(decay, shape, decay) for decay in ("slopes", "none", "strong")]
    checks += [_steps("normalize", shape, normalize=True), _steps("slopes, CUDA graph", shape, graph=True)]
    yield from in_halves(bench, checks)


def lightning(
    bench: Bench, name: str, shape: Shape, goals: Goals = NO_GOALS, *ratios: Ratio, always: bool = False
) -> Timed:
    """Lightning attention and its peer: the share of the bandwidth."""
    nbytes = shape.batch * shape.length * shape.heads * shape.width * bench.dtype.itemsize
    moved = timed.of_memory(bench, {way: count * nbytes for way, count in ARRAYS.items()}, goals)
    over, case = Ratio(f"over {FLA}", FLA, each_way(">= 1.3")), attention(name, shape)
    peers = lambda: fla_peer(bench)  # noqa: E731
    return Timed(case, peers, (BOTH, FORWARD), (moved,), (over, *ratios), same=FLA, always=always)


@piece("cuda", "linear")
def contexts(bench: Bench) -> Iterator[Timed]:
    """All contexts with the same number of tokens: share of the bandwidth, memory, flatness. Exact ones: contexts."""
    tokens, heads, width = bench.pick((512 * 1024, 16, 128), (32, 2, 16))
    shapes = [Shape(tokens // n, n, heads, width) for n in bench.pick([1024 << i for i in range(10)], [16, 32])]
    yield from (lightning(bench, "lightning", shape, ROOFLINE) for shape in shapes)
    for direction in ARRAYS:
        ratio = timed.flatness(bench, "lightning", [shape for shape in shapes if shape.length <= FLAT], direction)
        if ratio:
            row = Row("all contexts up to 128k", Shape(1, tokens, heads, width), bench.dtype, "ours", direction)
            bench.add(row, "slowest over fastest tokens/s", 1 / ratio, "", ">= 0.95")


@piece("first", "lightning-8k", length=8192)
@piece("first", "lightning-64k", length=65_536)
def headline(bench: Bench, length: int) -> Iterator[Timed]:
    """One context."""
    tokens, context, heads, width = bench.pick((256 * 1024, length, 16, 128), (32, 16, 2, 16))
    yield lightning(bench, "lightning", Shape(tokens // context, context, heads, width), ROOFLINE)


@piece("cuda", "few_heads")
def few_heads(bench: Bench) -> Iterator[Timed]:
    """One row of few heads over a long context, per byte, against a batch that fills the GPU."""
    many, counts = bench.pick((Shape(4, 64 * 1024, 32, 128), (8, 1, 4, 16)), (Shape(2, 32, 2, 16), (1,)))
    yield lightning(bench, "saturated", many, ROOFLINE, always=True)
    for heads in counts:
        goals, share = each_way("<= 1.5") if heads == 8 else NO_GOALS, heads / (many.batch * many.heads)
        ratio = Ratio("time per byte over saturated", "ours", goals, row=("saturated", many), share=share)
        yield lightning(bench, "few heads", Shape(1, many.length, heads, many.width), NO_GOALS, ratio)


@piece("cuda", "widths")
def widths(bench: Bench) -> Iterator[Timed]:
    """Heads 64, 128 and 256 wide, with the same number of bytes."""
    batch, length, numbers, sizes = bench.pick((4, 8192, 64 * 128, (64, 128, 256)), (1, 16, 64, (16, 32)))
    shapes = [Shape(batch, length, numbers // width, width) for width in sizes]
    wider = Ratio("time per byte over half as wide", "ours", each_way("<= 2.5"), row=("widths", shapes[-2]), share=1.0)
    for shape in shapes:
        goals, ratios = ROOFLINE if shape.width == 128 else NO_GOALS, (wider,) if shape == shapes[-1] else ()
        yield lightning(bench, "widths", shape, goals, *ratios)


def step(name: str, shape: Shape) -> Case:
    """One step, which updates its state."""

    def other(device: torch.device) -> Arrays:
        state = torch.zeros(shape.batch, shape.heads, shape.width, shape.width, device=device)
        return {"log_decay": decays("slopes", 1, 1, shape.heads, device), "state": state}

    sizes = dict.fromkeys("qkv", (shape.batch, shape.heads, shape.width))
    return Case(name, shape, linear_attention_step, sizes, other=other)


@piece("cuda", "decode", batches=(1, 4, 32, 256))
@piece("first", "decode", batches=(1,))
def steps(bench: Bench, batches: tuple[int, ...]) -> Iterator[Timed]:
    """Steps over batch sizes: by the GPU's time, by the host's, and inside a CUDA graph."""
    heads, width = bench.pick((64, 128), (2, 16))
    for shape in (Shape(batch, 1, heads, width) for batch in bench.pick(batches, (1,))):
        on_gpu = microseconds("GPU time", goals={FORWARD: "<= 15"} if shape.batch <= 4 else NO_GOALS)
        moved = timed.of_memory(bench, {FORWARD: 8 * shape.batch * heads * width**2})
        alone = Timed(step("linear step", shape), lambda: fla_peer(bench, step=True), (FORWARD,), (on_gpu, moved))
        yield alone
        for how, clock, metric in (
            ("eager", HOST, microseconds("host time")),
            ("in a CUDA graph", GraphClock(), on_gpu),
        ):
            yield Timed(step(f"linear step, {how}", shape), directions=(FORWARD,), metrics=(metric,), clock=clock)


@piece("cuda", "overhead")
def overhead(bench: Bench) -> Iterator[Timed]:
    """Host time of eager calls on arrays so small that the GPU does not matter."""
    shape, told = (
        bench.pick(Shape(1, 64, 1, 64), Shape(1, 16, 2, 16)),
        microseconds("per call", goals={FORWARD: "<= 60"}),
    )
    peers = lambda: fla_peer(bench)  # noqa: E731
    yield Timed(attention("linear", shape), peers, (FORWARD, BOTH), (told,), clock=HOST)
    told = microseconds("per call")
    yield Timed(step("linear step", shape), directions=(FORWARD,), metrics=(told,), clock=HOST)


@piece("cpu", "linear")
def on_a_cpu(bench: Bench) -> Iterator[Timed | Together]:
    """Lightning against exact attention over contexts, forward and backward, and its time per token."""
    shapes = [Shape(1, length, 8, 64) for length in CPU_LENGTHS[bench.options.scale]]
    bench.pace["sdpa"] = timed.flops(Shape(1, 8192, 8, 64), BOTH), 0.0, 5.0  # until it has been measured
    for shape in shapes:
        goals = {BOTH: CPU_RATIOS[shape.length]} if shape.length in CPU_RATIOS else NO_GOALS
        over, time = Ratio("over sdpa", "sdpa", goals), microseconds("per token", shape.length)
        case, peers = attention("lightning", shape), lambda: {"sdpa": sdpa()}
        yield Timed(case, peers, (BOTH,), (time,), (over,))
    name, long = "lightning, 2k and more side by side", [shape for shape in shapes if shape.length >= 2048]
    yield Together("flatness", tuple(Timed(attention(name, shape), directions=(BOTH,)) for shape in long))
    ratio = timed.flatness(bench, name, long, BOTH)
    if ratio:
        row = Row(name, long[-1], bench.dtype, "ours", BOTH)
        bench.add(row, "slowest over fastest time per token", ratio, "x", "<= 1.3")
