"""A sweep from its first run to its last: starts what is left, keeps the ledger, and can be stopped at any moment.

Every run is a train.py process of its own, and every evaluation an eval.py process, so that devices, caches and
failures stay apart; Hydra's multirun, whose jobs share one process and are known by their number, is not used.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from zoo.paths import program_command, split_command
from zoo.runs.run_folder import RunFolder, write_json
from zoo.sweeps.compose import PlannedRun, SweepPlan, read_plan
from zoo.sweeps.evaluations import EvalTask
from zoo.sweeps.launch import LOG, Job, Launcher, LocalLauncher, visible_devices
from zoo.sweeps.ledger import Ledger, LedgerEntry, Status
from zoo.sweeps.preflight import prepare
from zoo.sweeps.runs import eval_command, find_finished, is_busy, is_trained, make_room, train_command
from zoo.sweeps.status import Progress, duration, show_summary

PAUSE = 0.2  # seconds between looks at the processes
FAILED = 1
TRAIN = "training"


def run_sweep(arguments: Sequence[str]) -> int:
    """The sweep that a command line of train.py asks for; 0 if all runs are finished, 1 if some failed, 128 + a signal.

    Raises:
        ConfigError: on what cannot be composed, trained or evaluated, before any run, and if another process works on
            the sweep's folder.
    """
    plan = prepare(read_plan(arguments))
    launcher = build_launcher(plan)
    with RunFolder(plan.folder).locked("hydra.sweep.dir"):
        write_json(plan.folder / "sweep.json", plan.describe())
        driver = Driver(plan, launcher)
        with listening(driver):
            driver.run()
    return driver.conclude()


def build_launcher(plan: SweepPlan) -> Launcher:
    """What ``sweep.launcher`` names.

    Raises:
        ConfigError: on options that do not fit the machine.
    """
    options = plan.options
    if options["launcher"] == "slurm":
        from zoo.sweeps.slurm import SlurmLauncher

        return SlurmLauncher(options["jobs"], plan.folder / "slurm", options["name"], options["slurm"])
    devices = [] if plan.runs[0].config.trainer.accelerator == "cpu" else visible_devices()
    return LocalLauncher(options["jobs"], devices, options["devices_per_arm"])


@dataclass
class Active:
    """A run that goes on: its steps, of which ``seen`` are entered in the ledger."""

    run: PlannedRun
    job: Job
    steps: list[EvalTask | None]  # None: the training
    done: list[str]
    seen: int = 0


class Driver:
    """Starts the runs of a plan and enters what becomes of them."""

    def __init__(self, plan: SweepPlan, launcher: Launcher) -> None:
        self.plan, self.launcher = plan, launcher
        self.ledger = Ledger(plan.folder)
        self.progress = Progress(len(plan.runs), plan.options["jobs"])
        self.active: list[Active] = []
        self.todo: deque[PlannedRun] = deque()
        self.waited: set[str] = set()
        self.stop_signal: int | None = None

    def run(self) -> None:
        """All runs, until none is left or a signal comes."""
        self.todo.extend(self._unfinished())
        try:
            while self.active or (self.todo and self.stop_signal is None):
                for active in list(self.active):
                    self._observe(active)
                self._start()
                time.sleep(PAUSE)
        finally:
            for active in self.active:  # after an error of the driver's own
                active.job.stop()

    def stop(self, number: int, frame: FrameType | None = None) -> None:
        """A signal: the first lets the runs save and end, a second ends them at once."""
        hard, self.stop_signal = self.stop_signal is not None, number
        for active in self.active:
            active.job.stop(hard)
        if not hard:
            print(f"stopping: {len(self.active)} runs save and end (again: at once)", file=sys.stderr, flush=True)

    def conclude(self) -> int:
        """Print what became of the sweep; its exit status."""
        entries = {run.key: entry for run in self.plan.runs if (entry := self.ledger.get(run.key))}
        status = {key: entry.status for key, entry in entries.items()}
        if self.stop_signal is not None:
            again = program_command("train.py", *split_command(self.plan.command)[2:])
            print(f"stopped by {signal.Signals(self.stop_signal).name}; continue with: {again}", flush=True)
            return 128 + self.stop_signal
        show_summary(self.plan, status, {key: entry.reason or "" for key, entry in entries.items()})
        return 0 if all(status.get(run.key) == "finished" for run in self.plan.runs) else FAILED

    def _unfinished(self) -> Iterator[PlannedRun]:
        plan, retry = self.plan, self.plan.options["retry"]
        for run in plan.runs:
            entry = self.ledger.get(run.key)
            if find_finished(self.ledger, plan.folder, run, plan.tasks):
                self.progress.ended += 1
            elif entry and entry.status == "failed" and not retry:
                self.progress.ended += 1
                self.progress.say(run, f"failed earlier, and sweep.retry=false: {entry.reason}")
            else:
                yield run
        jobs = plan.options["jobs"]
        print(
            f"sweep {plan.folder}: {len(plan.arms)} arms, {len(plan.seeds)} seeds, "
            f"{self.progress.ended} of {len(plan.runs)} runs done, {jobs} at a time",
            flush=True,
        )

    def _start(self) -> None:
        for _ in range(len(self.todo)):
            if self.stop_signal is not None or not self.launcher.free():
                return
            run = self.todo.popleft()
            if is_busy(self.plan.folder / run.folder):
                self._wait_for(run)
            else:
                self._begin(run)

    def _wait_for(self, run: PlannedRun) -> None:
        if run.key not in self.waited:
            self.progress.say(run, "is still trained by a process of an earlier start: waiting for it")
        self.waited.add(run.key)
        self.todo.append(run)

    def _begin(self, run: PlannedRun) -> None:
        for text in make_room(self.ledger, self.plan.folder, run):
            self.progress.say(run, text)
        folder = self.plan.folder / run.folder
        trained, entry = is_trained(folder, run.budget), self.ledger.get(run.key)
        done = list(entry.tasks) if trained and entry else []
        steps: list[EvalTask | None] = [] if trained else [None]
        steps += [task for task in self.plan.tasks if task.label not in done]
        self.progress.start(run)
        self._enter(run, "trained" if trained else "started", done)
        if not steps:
            self._finish(run, done)
            return
        commands = [eval_command(folder, run, s) if s else train_command(folder, run) for s in steps]
        self.progress.say(
            run, "evaluating" if trained else "resuming" if commands[0][2].startswith("resume=") else "training"
        )
        job = self.launcher.start(commands, folder / LOG)
        self.active.append(Active(run, job, steps, done))
        if self.stop_signal is not None:  # came while the process was started
            job.stop()

    def _observe(self, active: Active) -> None:
        ended = active.job.poll()
        while active.seen < len(active.job.codes) and active.job.codes[active.seen] == 0:
            step = active.steps[active.seen]
            active.seen += 1
            active.done += [step.label] if step else []
            if active.seen < len(active.steps):
                self._enter(active.run, "trained", active.done)
                self.progress.say(active.run, f"{step.name if step else TRAIN} done")
        if not ended:
            return
        self.active.remove(active)
        if active.seen == len(active.steps):
            self._finish(active.run, active.done)
        elif self.stop_signal is not None:
            self.progress.say(active.run, "stopped")
        elif active.steps[active.seen] is None and is_busy(self.plan.folder / active.run.folder):
            self._wait_for(active.run)  # of an earlier start that had not locked the folder yet
        else:
            step = active.steps[active.seen]
            reason = f"{step.label if step else TRAIN}: {active.job.fault()}"
            self._enter(active.run, "failed", active.done, reason)
            self.progress.end(active.run, f"FAILED: {reason}", finished=False)

    def _finish(self, run: PlannedRun, done: Sequence[str]) -> None:
        self._enter(run, "finished", done)
        self.progress.end(run, f"finished in {duration(self.progress.seconds(run))}", finished=True)

    def _enter(self, run: PlannedRun, status: Status, tasks: Sequence[str], reason: str | None = None) -> None:
        seconds = None if status == "started" else round(self.progress.seconds(run), 1)
        self.ledger.add(
            LedgerEntry(
                run.key, run.arm, run.seed, run.overrides, run.folder, status, reason, seconds=seconds, tasks=[*tasks]
            )
        )


@contextmanager
def listening(driver: Driver) -> Iterator[None]:
    """Signals stop the driver; its runs hear of them from it alone."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
    previous: dict[int, Any] = {number: signal.signal(number, driver.stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
