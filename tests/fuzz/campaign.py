"""Many random cases: run, judged, counted, and those at fault printed as commands."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from random import Random

from tests.fuzz.forked import Case, Ended, run_cases
from tests.fuzz.judge import REFUSAL, SUCCESS, verdict
from tests.fuzz.spaces import Space

LOADED = ("matplotlib.figure", "zoo.training.run", "zoo.training.callbacks", "zoo.training.initial", "zoo.generation")
LOADED += ("zoo.evaluation.program", "zoo.conversion.convert_run", "zoo.sweeps.driver", "zoo.sweeps.page.write")
EVERY = 100  # cases between two lines of progress


def load_programs() -> None:
    """Import, once, what the programs import."""
    for name in LOADED:
        import_module(name)


class Tally:
    """How the cases have ended so far."""

    def __init__(self, start: Path, total: int) -> None:
        self.start, self.total = start, total
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.faults: dict[str, list[Case]] = defaultdict(list)
        self.begin = time.monotonic()

    def add(self, number: int, ended: Ended) -> None:
        """Count a case; print it if it is at fault."""
        found = verdict(ended)
        self.counts[ended.case.program][found if found in (SUCCESS, REFUSAL) else "fault"] += 1
        if found not in (SUCCESS, REFUSAL):
            self.faults[found].append(ended.case)
            print(f"case {number}: {found}\n    {ended.case.command(self.start)}", flush=True)
        if self.done % EVERY == 0:
            print(f"{self.done} of {self.total} cases, {self.seconds:.0f} s, {self.failed} at fault", flush=True)

    @property
    def done(self) -> int:
        """Cases that have ended."""
        return sum(counts.total() for counts in self.counts.values())

    @property
    def failed(self) -> int:
        """Cases at fault."""
        return sum(map(len, self.faults.values()))

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.begin

    def summary(self) -> str:
        """Counts by program, then the kinds of fault, the most frequent first."""
        lines = [f"{'program':28}{SUCCESS:>10}{REFUSAL:>10}{'fault':>10}"]
        for program, counts in sorted(self.counts.items()):
            lines.append(f"{program:28}{counts[SUCCESS]:10}{counts[REFUSAL]:10}{counts['fault']:10}")
        lines.append(f"{self.done} of {self.total} cases in {self.seconds:.0f} s: {self.failed} at fault")
        lines += [f"{len(c):5}  {kind}" for kind, c in sorted(self.faults.items(), key=lambda item: -len(item[1]))]
        return "\n".join(lines)


def draw_cases(spaces: Sequence[Sequence[Space]], weights: Sequence[float], count: int, seed: int) -> list[Case]:
    """Random cases; the same for the same seed and programs.

    Args:
        spaces: by program. weights: of each program.
    """
    rng = Random(seed)
    return [rng.choice(rng.choices(spaces, weights)[0]).case(rng) for _ in range(count)]


def run_campaign(cases: Sequence[Case], start: Path, work: Path, jobs: int, seconds: float) -> Tally:
    """Run and judge the cases; Ctrl-C ends it with what there is."""
    tally = Tally(start, len(cases))
    try:
        for number, ended in run_cases(cases, start, work, jobs, seconds):
            tally.add(number, ended)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(tally.summary(), flush=True)
    return tally
