"""Decoding on a GPU: a step of exact attention against the bandwidth of its memory, the latency of a linear one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import zoo_kernels
from kernel_bench.bench import Bench, Row, Shape
from kernel_bench.ceilings import bandwidth
from kernel_bench.forms import add_peaks
from kernel_bench.inputs import FORWARD, Attention, copies, low_precision, slopes
from kernel_bench.peers import add_flex, fla_step, sdpa_peers
from kernel_bench.timing import Run, Timing, host_time, timing_of


def decode(bench: Bench) -> None:
    """Softmax steps over contexts with eight key heads, then linear steps over batch sizes."""
    contexts = (40,) if bench.dry else [1024 << i for i in range(10)]
    heads, groups, width = (4, 2, 16) if bench.dry else (32, 8, 128)
    bandwidth(bench)
    shapes = [Shape(1, t, heads, width, groups) for t in contexts]
    if not bench.dry:
        shapes += [Shape(b, 8192, heads, width, groups) for b in (8, 32)]
    softmax_steps(bench, shapes)
    linear_steps(bench, [Shape(b, 1, 2 if bench.dry else 64, width) for b in ((1,) if bench.dry else (1, 4, 32, 256))])


def softmax_steps(bench: Bench, shapes: list[Shape]) -> None:
    """One step over a cache of each shape."""
    bench.each(shapes, lambda shape: _softmax_step(bench, shape), lambda shape: f"softmax step {shape}")


def linear_steps(bench: Bench, shapes: list[Shape]) -> None:
    """One step with a state of each shape."""
    bench.each(shapes, lambda shape: _linear_step(bench, shape), lambda shape: f"linear step {shape}")


@torch.no_grad()
def _softmax_step(bench: Bench, shape: Shape) -> None:
    dtype, name = low_precision(bench), "softmax step"
    nbytes = 2 * shape.batch * shape.length * shape.key_heads * shape.width * dtype.itemsize
    q = torch.randn(shape.batch, shape.heads, shape.width, device=bench.device, dtype=dtype)
    size = (shape.batch, shape.length, shape.key_heads, shape.width)
    caches = [
        tuple(torch.randn(*size, device=bench.device, dtype=dtype) for _ in range(2))
        for _ in range(copies(bench, nbytes))
    ]
    lengths = torch.full((shape.batch,), shape.length, device=bench.device)
    step = bench.ours(zoo_kernels.softmax_attention_step)
    peers = sdpa_peers(bench, causal=False)
    add_flex(bench, f"{name} {shape}", peers, lambda: None)

    def over_cache(form: Attention) -> Run:
        return lambda i: form(q[:, None], *caches[i % len(caches)])

    runs: dict[str, Run] = {"ours": lambda i: step(q, *caches[i % len(caches)], lengths)}
    runs |= {who: over_cache(form) for who, form in peers.items()}
    timings = bench.measure(f"{name} {shape}", runs, work=nbytes)
    add_peaks(bench, Row(name, shape, dtype, "", FORWARD), {who: runs[who] for who in timings})
    for who, timing in timings.items():
        share = 100 * nbytes / bandwidth(bench) / (timing.median / 1e3)
        goal = ">= 80" if who == "ours" and shape.length >= 32768 else None
        bench.add(Row(name, shape, dtype, who, FORWARD, timing), "of HBM", share, "%", goal)
    _graph(bench, Row(name, shape, dtype, "ours", FORWARD), lambda: step(q, *caches[0], lengths), None)


@torch.no_grad()
def _linear_step(bench: Bench, shape: Shape) -> None:
    dtype, name = low_precision(bench), "linear step"
    q, k, v = (torch.randn(shape.batch, shape.heads, shape.width, device=bench.device, dtype=dtype) for _ in range(3))
    state = torch.zeros(shape.batch, shape.heads, shape.width, shape.width, device=bench.device)
    decay = slopes(shape.heads, bench.device)
    step = bench.ours(zoo_kernels.linear_attention_step)
    runs: dict[str, Run] = {"ours": lambda i: step(q, k, v, decay, state)}

    def one_token(form: Attention) -> Run:
        return lambda i: form(q[:, None], k[:, None], v[:, None])

    runs |= {who: one_token(form) for who, form in fla_step(bench, decay, state).items()}
    timings = bench.measure(f"{name} {shape}", runs, work=8.0 * state.numel())
    add_peaks(bench, Row(name, shape, dtype, "", FORWARD), {who: runs[who] for who in timings})
    goal = "<= 15" if shape.batch <= 4 and not bench.dry else None
    for who, timing in timings.items():
        row = Row(name, shape, dtype, who, FORWARD, timing)
        bench.add(row, "GPU time", 1e3 * timing.median, "us", goal if who == "ours" else None)
        least = 8 * state.numel() / bandwidth(bench)
        bench.add(row, "of HBM", 100 * least / (timing.median / 1e3), "%")
    row = Row(f"{name}, eager", shape, dtype, "ours", FORWARD)
    host = timing_of(host_time(lambda i: step(q, k, v, decay, state), 1 if bench.dry else 200))
    bench.add(row._replace(timing=host), "host time", 1e3 * host.median, "us")
    _graph(bench, row._replace(name=name), lambda: step(q, k, v, decay, state), goal)


def _graph(bench: Bench, row: Row, call: Callable[[], Any], goal: str | None) -> None:
    """Time of one call inside a captured CUDA graph of many, which shows that it can be captured."""
    row = row._replace(name=f"{row.name}, in a CUDA graph", implementation="ours")
    inside = 1 if bench.dry else 20
    with bench.guard(f"{row.name} {row.shape}"):
        replay = _capture(call, inside) if bench.device.type == "cuda" else call
        found = bench.measure(row.name, {"ours": lambda i: replay()})["ours"]
        timing = Timing(*(x / inside for x in found))
        bench.add(row._replace(timing=timing), "GPU time", 1e3 * timing.median, "us", goal)


def _capture(call: Callable[[], Any], inside: int) -> Callable[[], Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(inside):
            call()
    return graph.replay
