"""The run: its pieces one after the other; on a GPU each in a process of its own. One table and one file of all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from multiprocessing.connection import Connection
from typing import Any

import torch

from zoo_kernels.bench.bench import Bench, Found, Options
from zoo_kernels.bench.check import Checked
from zoo_kernels.bench.clock import Clock, host_seconds
from zoo_kernels.bench.processes import Watch
from zoo_kernels.bench.registry import CHECKED, FIRST, Item, items_of, names_of
from zoo_kernels.bench.report import table, verdict
from zoo_kernels.bench.results import Results

CHECK, WARM = "check-", "warm-"  # how the names of steps begin that check, or call what will be timed
SMALL = 600  # tokens of a case that piece=first checks; longer ones belong to piece=correctness
GROUP = 4  # cases of a step: what a process that dies can lose
LOST = 3  # status of a process whose GPU no longer answers
CHECKING, SHARE = 60.0, 0.3  # seconds at most, and part of all, for what runs side by side
ROWS = 0.9  # share of a process in which rows begin, so that what has no time is named before the process is ended
MARGIN = 4.0  # seconds for ending the processes and telling what was found
PATIENCE = 90.0  # seconds of silence after which a step of piece=first hangs


def run(options: Options, watch: Callable[..., Watch] = Watch) -> Results:
    """Run what the options ask for; Ctrl-C ends the run, and what was measured until then is told and written.

    Args:
        options: checked.
        watch: runs steps in processes.

    Raises:
        SystemExit: with status 1 if a piece in a process could not be run to its end.
    """
    results, interrupted, first = Results(options), False, options.pieces == (FIRST,)
    names, begin = (steps_of_first(options) if first else options.pieces), time.monotonic()
    if not first:
        results.found = {name: found for name, found in results.found.items() if name not in names}
    try:
        if first:
            run_first(options, results, names, watch)
        elif options.device.type == "cuda":
            apart = watch(results, partial(work, options))
            for name in names:
                apart.run([[name]], 60 * options.minutes, 60 * options.minutes)
        else:
            if options.threads:
                torch.set_num_threads(options.threads)
            for name in names:
                left = 60 * options.minutes - (time.monotonic() - begin if options.suite == "cpu" else 0.0)
                step(options, name, left, partial(results.keep, name))
    except KeyboardInterrupt:
        interrupted = True
    results.write(interrupted)
    tell(options, results, names)
    if interrupted:
        raise KeyboardInterrupt
    if not first and options.device.type == "cuda" and not all(map(results.done, names)):
        raise SystemExit(1)
    return results


def tell(options: Options, results: Results, names: Iterable[str]) -> None:
    """Print the tables."""
    known = {name: results.found[name] for name in names if name in results.found and not name.startswith(WARM)}
    shown = {FIRST: list(known.values())} if options.pieces == (FIRST,) else {n: [f] for n, f in known.items()}
    print()
    for name, found in shown.items():
        print(table(name, found, str(results.file or "")))
    missing = [name for name in names if not results.done(name)]
    if missing:
        again = ": the same command goes on with them" if options.pieces == (FIRST,) else ""
        print(f"{len(missing)} of {len(list(names))} steps are missing{again}: {', '.join(missing)[:600]}")
    print(f"{verdict(known.values())}{f'; results: {results.file}' if results.file else ''}", flush=True)


def step(options: Options, name: str, seconds: float, keep: Callable[[Found], None]) -> Bench:
    """Do a piece, or a step of piece=first, in this process, and give ``keep`` what was found after every row."""
    bench = Bench(options, name, seconds, keep)
    if name.startswith(WARM):
        bench.clock = Clock(host_seconds)
    bench.run(items(bench))
    return bench


def items(bench: Bench) -> Iterator[Item]:
    """What a piece, or a step of piece=first, runs; the same in every process."""
    if bench.options.pieces != (FIRST,):
        return items_of(bench, bench.options.suite, bench.piece)
    if bench.piece.startswith(CHECK):
        return iter(small_checks(bench)[bench.piece])
    return items_of(bench, FIRST, bench.piece.removeprefix(WARM))


def work(options: Options, names: tuple[str, ...], seconds: float, pipe: Connection) -> None:
    """The body of a process: steps one after the other, until one has no more time or breaks the GPU's context."""
    end = time.monotonic() + ROWS * seconds
    if options.threads:
        torch.set_num_threads(options.threads)
    for name in names:
        pipe.send((name, Found()))

        def keep(found: Found, name: str = name) -> None:
            pipe.send((name, found))

        if step(options, name, end - time.monotonic(), keep).lost:
            os._exit(LOST)


def small_checks(bench: Bench) -> dict[str, list[Checked]]:
    """Small checks of every kernel in both half precisions, in groups by the name of a step; the pieces take turns."""
    pieces: list[list[tuple[str, list[Checked]]]] = []
    for name in (name for name in names_of("cuda") if name.startswith(CHECKED)):
        checks: list[Any] = [item for item in items_of(bench, "cuda", name) if isinstance(item, Checked)]
        small = [check for check in checks if check.size.length <= SMALL and not check.repeats]
        groups = [small[i : i + GROUP] for i in range(0, len(small), GROUP)]
        pieces.append([(f"{CHECK}{name.removeprefix(CHECKED)}-{i}", group) for i, group in enumerate(groups)])
    return dict(filter(None, (group for turn in zip_longest(*pieces) for group in turn)))


def steps_of_first(options: Options) -> tuple[str, ...]:
    """Names of the steps of ``piece=first``: checks, and headline speeds."""
    return *small_checks(Bench(options, FIRST)), *names_of(FIRST)


def run_first(options: Options, results: Results, names: Iterable[str], watch: Callable[..., Watch] = Watch) -> None:
    """``piece=first``: what the first minutes on a GPU are for, as far as its time goes.

    Side by side every kernel is compiled and checked by several processes, while others call what will be timed, so
    that its binaries lie in Triton's cache. Then one process alone times, the most telling first. What is done already
    is not done again. Kernels that have changed make all missing.
    """
    end = time.monotonic() + 60 * options.minutes - MARGIN
    apart = watch(results, partial(work, replace(options, pieces=(FIRST,))))

    def missing(checks: bool) -> list[str]:
        left = [n for n in names if n.startswith(CHECK) == checks and not results.done(n)]
        return sorted(left, key=lambda n: n in results.found and bool(results.found[n].errors))  # what failed last

    def check(callers: list[str], seconds: float) -> None:
        cores = 2 if options.scale == "dry" else os.cpu_count() or 1
        callers = callers if cores >= 2 * len(callers) else []  # few cores are for the checks alone
        lanes, left = cores - len(callers), missing(checks=True)
        apart.run([*(left[i::lanes] for i in range(lanes)), *([WARM + n] for n in callers)], PATIENCE, seconds)
        for name in callers:
            results.found.pop(WARM + name, None)

    print(f"{FIRST}: {sum(map(results.done, names))} of {len(list(names))} steps are done already", flush=True)
    speeds = missing(checks=False)
    check(speeds, min(CHECKING, SHARE * 60 * options.minutes))
    apart.run([speeds], PATIENCE, end - time.monotonic())
    check([], end - time.monotonic())  # checks that the first minute had no time for
