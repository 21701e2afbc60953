"""The run: its pieces one after the other, each with its table and its file; on a GPU, each in a process of its own."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from zoo_kernels.bench.bench import Bench, Options
from zoo_kernels.bench.processes import WARM, Files, Job, Start, Watch, items, small_checks, start_process
from zoo_kernels.bench.record import Record, busy, write
from zoo_kernels.bench.registry import FIRST, names_of
from zoo_kernels.bench.report import joined, table, verdict

RESULTS = Path("runs") / "kernels"  # where the pieces on CUDA leave their files if nothing else is said
CHECKING = 60.0  # seconds at most for what runs side by side
SHARE = 0.3  # of all seconds, if those are few
MARGIN = 4.0  # seconds for ending the processes and telling what was found
PATIENCE, CALLING, TIMING = 40.0, 60.0, 90.0  # seconds after which a step of checks, of calls, of times hangs
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


def run_here(options: Options, draw: Draw | None = None) -> list[Bench]:
    """All pieces in this process; Ctrl-C ends the run, and what was measured until then is told and written."""
    benches: list[Bench] = []
    interrupted = False
    try:
        for name in options.pieces:
            benches.append(bench := Bench(options, name))
            if not bench.bounded and busy() > 0.5:
                bench.note(f"the machine was busy at the start: load {busy():.1f}")
            bench.after_row = lambda: _write(benches, False)
            bench.run(items(bench))
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
    folder, seconds, interrupted = options.out or RESULTS, options.minutes * 60, False
    files, benches, broken = Files(folder, options), [], []
    for name in options.pieces:
        files.file(name).unlink(missing_ok=True)
        one = watch(options, files)
        try:
            one.run([Job((name,), seconds)], seconds)
        except KeyboardInterrupt:
            interrupted = True
        broken += one.broken
        benches.append(bench := files.merged(Bench(options, name), [name]))
        print(f"\n{table(bench, str(files.file(name)))}\n{verdict([bench])}; results: {folder}", flush=True)
        if interrupted:
            content = files.read(name)
            if content:
                content["environment"]["interrupted"] = True
                write(files.file(name), content)
            raise KeyboardInterrupt
    if broken:
        print(f"ERROR not run to their end: {', '.join(broken)}", flush=True)
        raise SystemExit(1)
    return benches


def _file(bench: Bench) -> Path | None:
    """On the CPU one file of all pieces, else one of each."""
    out = bench.options.out
    return out if out is None or not bench.bounded else out / f"{bench.piece}.json"


def _write(benches: list[Bench], interrupted: bool) -> None:
    file = _file(benches[-1]) if benches else None
    if file is not None:
        last = benches[-1]
        write(file, last.content(interrupted) if last.bounded else joined(benches, interrupted))


class First:
    """``piece=first``: what the first minutes on a GPU are for, as far as its seconds go.

    Side by side every kernel is compiled and checked by several processes, while others call what will be timed, so
    that its binaries lie in Triton's cache. Then one process alone times, the most telling first. Each step has a file
    of its own, written as it goes; a second call runs what is missing. Kernels that have changed make all missing.

    Args:
        options: options of the command line; ``seconds`` is what all of it may take. A dry run without ``out`` writes
            to a temporary folder.
        start: as in :class:`Watch`.
        now: as in :class:`Watch`.
        sleep: as in :class:`Watch`.
    """

    def __init__(
        self,
        options: Options,
        start: Start = start_process,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.options, self.now, self.begin = options, now, now()
        self.files = Files((options.out or Path(tempfile.gettempdir()) / "bench_kernels_dry") / FIRST, options)
        self.watch = Watch(options, self.files, start, now, sleep)
        self.bench = Bench(options, FIRST)
        self.checks, self.speeds = tuple(small_checks(self.bench)), names_of(FIRST)

    def run(self) -> Bench:
        """All that is missing, as far as the time goes; the results, earlier ones among them."""
        count, interrupted = len(self.checks + self.speeds), False
        print(f"first: {count - len(self._missing(self.checks + self.speeds))} of {count} steps are done already")
        try:
            speeds = self._missing(self.speeds)
            self._side_by_side(speeds, min(CHECKING, SHARE * self.options.seconds, self._left()))
            self.watch.run([Job(tuple(speeds), TIMING)] if speeds else [], self._left())
            self._side_by_side([], self._left())  # checks that the first minute had no time for
        except KeyboardInterrupt:
            interrupted = True
        return self._tell(interrupted)

    def _left(self) -> float:
        return self.options.seconds - MARGIN - (self.now() - self.begin)

    def _missing(self, names: tuple[str, ...]) -> list[str]:
        """Those that are not done, what failed last."""
        done = self.files.done()
        return sorted((n for n in names if n not in done), key=lambda n: bool(self.files.read(n).get("errors")))

    def _side_by_side(self, speeds: list[str], seconds: float) -> None:
        """Check with as many processes as there are cores; beside them, call once what will be timed."""
        missing = self._missing(self.checks)
        cores = 2 if self.options.scale == "dry" else os.cpu_count() or 1
        callers = speeds if cores > 2 * len(speeds) else []  # few cores are for the checks alone
        sharing = min(cores - len(callers), len(missing))
        jobs = [Job(tuple(missing[i::sharing]), PATIENCE) for i in range(sharing)]
        self.watch.run(jobs + [Job((WARM + name,), CALLING) for name in callers], seconds)

    def _tell(self, interrupted: bool) -> Bench:
        """Merge the files of the steps into one, and print the tables."""
        names = self.checks + self.speeds
        bench = self.files.merged(self.bench, names)
        bench.dropped = missing = self._missing(names)
        if self.options.out is not None:
            write(self.options.out / f"{FIRST}.json", bench.content(interrupted))
        print(f"\n{table(bench, str(self.files.folder))}\n{verdict([bench])}; results: {self.files.folder}", flush=True)
        if missing:
            print(f"{len(missing)} of {len(names)} steps are missing: the same command goes on with them", flush=True)
        if interrupted:
            raise KeyboardInterrupt
        return bench
