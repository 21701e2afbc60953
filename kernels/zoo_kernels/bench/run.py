"""The run: its pieces one after the other, each with its table and its file; on a GPU, each in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.first import First
from zoo_kernels.bench.options import FIRST, RESULTS, Options
from zoo_kernels.bench.processes import Files, Job, Steps, Watch
from zoo_kernels.bench.record import Record, write
from zoo_kernels.bench.registry import items_of
from zoo_kernels.bench.report import joined, table, verdict

Draw = Callable[[Iterable[Record], Path], bool]


def run(options: Options, draw: Draw | None = None) -> list[Bench]:
    """Run what the options ask for.

    Args:
        options: checked.
        draw: makes the picture of the CPU tables, and says whether there was anything to draw.

    Raises:
        SystemExit: with status 1 if a piece on CUDA could not be run to its end.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.pieces == (FIRST,):
        return [First(options).run()]
    return run_apart(options) if options.device.type == "cuda" else run_here(options, draw)


def steps(bench: Bench) -> Steps:
    """The pieces by name."""
    return {name: partial(items_of, suite=bench.options.suite, name=name) for name in bench.options.pieces}


def run_here(options: Options, draw: Draw | None = None) -> list[Bench]:
    """All pieces in this process; Ctrl-C ends the run, and what was measured until then is told and written."""
    benches: list[Bench] = []
    interrupted = False
    try:
        for name in options.pieces:
            benches.append(bench := Bench(options, name))
            _note_others_at_work(bench)
            bench.after_row = lambda: _write(benches, False)
            bench.run(steps(bench)[name](bench))
            _write(benches, False)
    except KeyboardInterrupt:
        interrupted = True
    _write(benches, interrupted)
    if options.plot and draw and draw((r for bench in benches for r in bench.records), options.plot):
        print(f"plot: {options.plot}")
    print()
    for bench in benches:
        print(table(bench, str(_file(bench) or "")))
    print(f"{verdict(benches)}{f'; results: {options.out}' if options.out else ''}", flush=True)
    if interrupted:
        raise KeyboardInterrupt
    return benches


def run_apart(options: Options, watch: Callable[[Options, Files], Watch] = Watch) -> list[Bench]:
    """A process for every piece, so that a kernel that breaks the GPU's context or hangs ends only its own."""
    folder, seconds = options.out or RESULTS, options.minutes * 60
    files, benches, broken = Files(folder, options), [], []
    for name in options.pieces:
        files.file(name).unlink(missing_ok=True)
        one, interrupted = watch(options, files), False
        try:
            one.run([Job((name,), "piece", seconds, steps, folder)], seconds)
        except KeyboardInterrupt:
            interrupted = True
        broken += one.broken
        benches.append(files.merged(Bench(options, name), [name]))
        print(f"\n{table(benches[-1], str(files.file(name)))}\n{verdict(benches[-1:])}; results: {folder}", flush=True)
        if interrupted:
            files.interrupt(name)
            raise KeyboardInterrupt
    if broken:
        print(f"ERROR not run to their end: {', '.join(broken)}", flush=True)
        raise SystemExit(1)
    return benches


def _note_others_at_work(bench: Bench) -> None:
    """Note where other programs share the processor with a measurement on it."""
    if bench.bounded or not hasattr(os, "getloadavg"):
        return
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 0.5:
        bench.note(f"the machine was busy at the start: load {load:.1f} on {cores} cores")


def _file(bench: Bench) -> Path | None:
    """On the CPU one file of all pieces, else one of each."""
    out = bench.options.out
    return out if out is None or not bench.bounded else out / f"{bench.piece}.json"


def _write(benches: list[Bench], interrupted: bool) -> None:
    file = _file(benches[-1]) if benches else None
    if file is not None:
        last = benches[-1]
        write(file, last.content(interrupted) if last.bounded else joined(benches, interrupted))
