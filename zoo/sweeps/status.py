"""Output of a sweep: a line per event with the remaining time, and at the end a table."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from zoo.files import read_metrics
from zoo.paths import program_command
from zoo.sweeps.compose import PlannedRun, SweepPlan


class Progress:
    """Counts and times of a sweep of ``total`` runs of which ``jobs`` run at a time."""

    def __init__(self, total: int, jobs: int) -> None:
        self.total, self.jobs, self.ended = total, jobs, 0
        self.begun: dict[str, float] = {}
        self.durations: list[float] = []

    def say(self, run: PlannedRun, text: str) -> None:
        """Prints one line about a run."""
        print(f"[{self.ended}/{self.total}] {run}: {text}", flush=True)

    def start(self, run: PlannedRun) -> None:
        """Records the start of a run."""
        self.begun[run.key] = time.monotonic()

    def seconds(self, run: PlannedRun) -> float:
        """Returns the seconds since a run began."""
        return time.monotonic() - self.begun[run.key]

    def end(self, run: PlannedRun, text: str, finished: bool) -> None:
        """Records the end of a run, and prints it with the remaining time."""
        self.ended += 1
        if finished:
            self.durations.append(self.seconds(run))
        del self.begun[run.key]
        self.say(run, f"{text}{self._left()}")

    def _left(self) -> str:
        """The mean of the runs so far, for those that are to come."""
        if not self.durations or self.ended == self.total:
            return ""
        mean = statistics.fmean(self.durations)
        done = sum(min(mean, time.monotonic() - begun) for begun in self.begun.values())
        left = max(0.0, mean * (self.total - self.ended) - done) / min(self.jobs, self.total - self.ended)
        return f"; about {duration(left)} left" if left >= 1 else ""


def duration(seconds: float) -> str:
    """Formats seconds as ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def show_summary(plan: SweepPlan, status: Mapping[str, str], reasons: Mapping[str, str]) -> None:
    """Table of the arms, table of the failures, and what to do next.

    Args:
        plan: the sweep.
        status: status by the key of the run: finished, failed, or else unfinished.
        reasons: reasons of the failures, by key.
    """
    table = Table("arm", "finished", "failed", "validation bits/byte", title=plan.options["name"], title_justify="left")
    for arm in plan.arms:
        runs = [run for run in plan.runs if run.arm == arm.name]
        found = [status.get(run.key) for run in runs]
        done = [_bits(plan.folder / run.folder) for run, state in zip(runs, found) if state == "finished"]
        bits = [value for value in done if value is not None]
        shown = f"{statistics.fmean(bits):.4f}" if bits else ""
        shown += f" ± {statistics.stdev(bits):.4f}" if len(bits) > 1 else ""
        mark = " (reference)" if arm.name == plan.reference else ""
        table.add_row(arm.name + mark, f"{found.count('finished')}/{len(runs)}", str(found.count("failed")), shown)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    failed = [run for run in plan.runs if status.get(run.key) == "failed"]
    for run in failed:
        print(f"failed: {run}: {reasons.get(run.key, '')}\n        see {plan.folder / run.folder / 'output.log'}")
    print(f"report: {program_command('scripts/report.py', str(plan.folder))}", flush=True)


def _bits(folder: Path) -> float | None:
    rows = [row["val/bits_per_byte"] for row in read_metrics(folder / "metrics.jsonl") if "val/bits_per_byte" in row]
    return float(rows[-1]) if rows and rows[-1] is not None else None
