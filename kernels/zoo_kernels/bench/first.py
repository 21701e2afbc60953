"""``piece=first``: what the first minutes on a GPU are for, as far as its seconds go.

First, side by side, every kernel is compiled and checked by several processes, while others call what will be timed, so
that its binaries lie in Triton's cache. Then one process alone times, the most telling first. Each step has a file of
its own, written as it goes; a second call runs what is missing. Kernels that have changed since make all of it missing.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.check import Check
from zoo_kernels.bench.options import FIRST, Options
from zoo_kernels.bench.processes import WARM, Files, Job, Start, Steps, Watch, start_process
from zoo_kernels.bench.record import write
from zoo_kernels.bench.registry import CHECKED, Item, items_of, names_of
from zoo_kernels.bench.report import table, verdict

CHECKS, SPEEDS = "check", "speed"  # kinds of steps
SMALL = 300  # tokens of a case that is checked here; longer ones belong to piece=correctness
STRIDE = 5  # a dry run takes every fifth case
GROUP = 4  # cases of a step: what a process that dies can lose
CHECKING = 60.0  # seconds at most for what runs side by side
SHARE = 0.3  # of all seconds, if those are few
MARGIN = 4.0  # seconds for ending the processes and telling what was found
PATIENCE = {CHECKS: 40.0, SPEEDS: 90.0, WARM: 60.0}  # seconds after which a step is taken to hang


def checks(bench: Bench) -> dict[str, list[Check]]:
    """Small checks of every kernel in groups, in both half precisions; the pieces take turns."""
    pieces = []
    for name in names_of("cuda"):
        if name.startswith(CHECKED):
            found = (item for item in items_of(bench, "cuda", name) if isinstance(item, Check))
            small = [check for check in found if check.shape.length <= SMALL and not check.repeats]
            small = small[:: STRIDE if bench.dry else 1]
            groups = [small[i : i + GROUP] for i in range(0, len(small), GROUP)]
            kind = name.removeprefix(CHECKED)
            pieces.append([(f"check-{kind}-{number}", group) for number, group in enumerate(groups)])
    return dict(filter(None, (group for turn in zip_longest(*pieces) for group in turn)))


def steps(bench: Bench) -> Steps:
    """All steps in the order in which they matter; the same in every process."""

    def listed(group: list[Check], bench: Bench) -> Iterator[Item]:
        yield from group

    found: Steps = {name: partial(listed, group) for name, group in checks(bench).items()}
    return found | {name: partial(items_of, suite=FIRST, name=name) for name in names_of(FIRST)}


class First:
    """The parent of all: it starts processes, ends them in time, and tells what was found.

    Args:
        options: of the command line; ``seconds`` is what all of it may take. A dry run without ``out`` writes to a
            temporary folder.
        start, now, sleep: as in :class:`Watch`.
    """

    def __init__(
        self,
        options: Options,
        start: Start = start_process,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.options, self.now, self.begin = options, now, now()
        out = options.out or Path(tempfile.gettempdir()) / "bench_kernels_dry"
        self.files = Files(out / FIRST, options)
        self.watch = Watch(options, self.files, start, now, sleep)
        self.bench = Bench(options, FIRST)
        self.names = {CHECKS: list(checks(self.bench)), SPEEDS: list(names_of(FIRST))}

    def run(self) -> Bench:
        """All that is missing, as far as the time goes; the results, earlier ones among them."""
        interrupted = False
        count = sum(map(len, self.names.values()))
        print(f"first: {count - len(self._missing())} of {count} steps are done already", flush=True)
        try:
            limit = min(CHECKING, SHARE * self.options.seconds)
            self._side_by_side(self._missing(SPEEDS), min(limit, self._left()))
            speeds = self._missing(SPEEDS)
            self.watch.run([self._job(speeds, SPEEDS)] if speeds else [], self._left())
            self._side_by_side([], self._left())  # checks that the first minute had no time for
        except KeyboardInterrupt:
            interrupted = True
        return self._tell(interrupted)

    def _left(self) -> float:
        return self.options.seconds - MARGIN - (self.now() - self.begin)

    def _missing(self, *kinds: str) -> list[str]:
        done = self.files.done()
        names = [name for kind in kinds or self.names for name in self.names[kind] if name not in done]
        return sorted(names, key=lambda name: bool(self.files.read(name).get("errors")))  # what failed comes last

    def _job(self, names: list[str], role: str) -> Job:
        return Job(tuple(names), role, PATIENCE[role], steps, self.files.folder)

    def _side_by_side(self, warm: list[str], seconds: float) -> None:
        """Check with as many processes as there are cores; beside them, call once what will be timed."""
        missing = self._missing(CHECKS)
        cores = 2 if self.options.scale == "dry" else os.cpu_count() or 1
        callers = warm if cores > 2 * len(warm) else []  # few cores are for the checks alone
        sharing = max(1, min(cores - len(callers), len(missing)))
        jobs = [self._job(missing[i::sharing], CHECKS) for i in range(sharing) if missing[i::sharing]]
        self.watch.run(jobs + [self._job([name], WARM) for name in callers], seconds)

    def _tell(self, interrupted: bool) -> Bench:
        """Merge the files of the steps into one, and print the tables."""
        names = [name for kind in self.names.values() for name in kind]
        bench = self.files.merged(self.bench, names)
        bench.dropped = missing = self._missing()
        if self.options.out is not None:
            content = bench.content(interrupted)
            content["environment"]["seconds"] = round(self.now() - self.begin, 1)
            write(self.options.out / f"{FIRST}.json", content)
        print(f"\n{table(bench, str(self.files.folder))}\n{verdict([bench])}; results: {self.files.folder}", flush=True)
        if missing:
            print(f"{len(missing)} of {len(names)} steps are missing: the same command goes on with them", flush=True)
        if interrupted:
            raise KeyboardInterrupt
        return bench
