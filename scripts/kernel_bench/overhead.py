"""Host time of one call on arrays so small that the GPU does not matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import zoo_kernels
from kernel_bench.bench import Bench, Row, Shape
from kernel_bench.inputs import BOTH, FORWARD, draw_inputs, low_precision, slopes, timed
from kernel_bench.peers import fla_linear, sdpa
from kernel_bench.timing import Run, host_time, timing_of


def overhead(bench: Bench) -> None:
    """Microseconds per eager call of every public function, and of its peers."""
    shape = Shape(1, 16, 2, 16) if bench.dry else Shape(1, 64, 1, 64)
    families: tuple[Callable[[Bench, Shape], None], ...] = (_linear, _softmax, _steps)
    bench.each(families, lambda family: family(bench, shape), lambda family: family.__name__.strip("_"))


def _told(bench: Bench, name: str, shape: Shape, direction: str, runs: dict[str, Run], goal: str | None) -> None:
    calls = 1 if bench.dry else 200
    for who, run in runs.items():
        with bench.guard(f"{name} {who} {direction}"):
            for number in range(1 if bench.dry else 5):
                run(number)
            timing = timing_of(host_time(run, calls))
            row = Row(name, shape, low_precision(bench), who, direction, timing)
            bench.add(row, "per call", 1e3 * timing.median, "us", goal if who == "ours" else None)


def _linear(bench: Bench, shape: Shape) -> None:
    sets = draw_inputs(bench, shape, low_precision(bench))[:1]
    decay = slopes(shape.heads, bench.device)
    ours = bench.ours(zoo_kernels.linear_attention)
    forms = {"ours": lambda q, k, v: ours(q, k, v, decay)[0], **fla_linear(bench, decay)}
    for direction in (FORWARD, BOTH):
        runs = {who: timed(form, sets, direction) for who, form in forms.items()}
        _told(bench, "linear", shape, direction, runs, "<= 60" if direction == FORWARD and not bench.dry else None)


def _softmax(bench: Bench, shape: Shape) -> None:
    sets = draw_inputs(bench, shape, low_precision(bench))[:1]
    forms = {"ours": bench.ours(zoo_kernels.softmax_attention), "sdpa": sdpa()}
    for direction in (FORWARD, BOTH):
        runs = {who: timed(form, sets, direction) for who, form in forms.items()}
        _told(bench, "softmax", shape, direction, runs, "<= 60" if direction == FORWARD and not bench.dry else None)


@torch.no_grad()
def _steps(bench: Bench, shape: Shape) -> None:
    dtype = low_precision(bench)
    q, k, v = (torch.randn(1, shape.heads, shape.width, device=bench.device, dtype=dtype) for _ in range(3))
    state = torch.zeros(1, shape.heads, shape.width, shape.width, device=bench.device)
    size = (1, shape.length, shape.heads, shape.width)
    caches = [torch.randn(size, device=bench.device, dtype=dtype) for _ in range(2)]
    lengths = torch.full((1,), shape.length, device=bench.device)
    decay = slopes(shape.heads, bench.device)
    linear, softmax = bench.ours(zoo_kernels.linear_attention_step), bench.ours(zoo_kernels.softmax_attention_step)
    steps: dict[str, Callable[[int], Any]] = {
        "linear step": lambda i: linear(q, k, v, decay, state),
        "softmax step": lambda i: softmax(q, *caches, lengths),
    }
    for name, run in steps.items():
        _told(bench, name, shape, FORWARD, {"ours": run}, None)
