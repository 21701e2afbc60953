"""A piece as it runs: what it measured, the errors that must not stop the rest, and its time."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

import torch

from zoo_kernels.backend import BackendError
from zoo_kernels.bench.clock import Clock, Run, Timing, clock_of
from zoo_kernels.bench.options import Options
from zoo_kernels.bench.pace import Pace
from zoo_kernels.bench.record import CHECK, REPEATS, Record, Row, Shape, environment, reaches
from zoo_kernels.bench.registry import CHECKED, Item

Thing = TypeVar("Thing")
Value = TypeVar("Value")

FLA = "flash-linear-attention"
PEERS = ("sdpa", "flex", FLA)  # how the names of other implementations begin
WORK = 0.93  # share of the minutes; the rest is for starting the process and for telling what was found
ONCE = 10.0  # seconds of a call from which it is made once, without a warm-up, where there is no limit


class Bench:
    """One piece: its options and clocks, its records, what failed, and what there was no time for."""

    def __init__(self, options: Options, piece: str) -> None:
        self.options, self.piece = options, piece
        self.device, self.dry = options.device, options.scale == "dry"
        self.clock = clock_of(options.device, options.scale)
        self.records: list[Record] = []
        self.errors: list[dict[str, str]] = []
        self.dropped: list[str] = []
        self.notes: list[str] = []
        self.times: dict[tuple[str, Shape, str], dict[str, Timing]] = {}  # name, shape, direction; by implementation
        self.ceilings: dict[str, float] = {}  # per second, see ceilings.py
        self.pace = Pace()
        self.after_row: Callable[[], None] = lambda: None  # the runner writes what there is until now
        self.now: Callable[[], float] = time.monotonic
        self.bounded = options.suite == "cuda"  # a CPU table only starts no row when the minutes are over
        self.seconds = options.minutes * 60 * (WORK if self.bounded else 1.0)
        self.lost = False  # whether this process can no longer use its GPU
        self._rows = deque[float](maxlen=3)
        self._begin = self.now()

    @property
    def dtype(self) -> torch.dtype:
        """The type that speed is measured in: bf16, or fp32 where the interpreter or the CPU computes."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def halves(self) -> tuple[torch.dtype, ...]:
        """The types that kernels are checked in; the interpreter's bf16 is wrong."""
        return (torch.float16,) if self.dry else (torch.bfloat16, torch.float16)

    def pick(self, full: Value, dry: Value, quick: Value | None = None) -> Value:
        """The value that goes with the scale of this run."""
        if self.dry:
            return dry
        return quick if self.options.scale == "quick" and quick is not None else full

    def elapsed(self) -> float:
        """Seconds since the piece began."""
        return self.now() - self._begin

    def left(self) -> float:
        """Seconds in which rows may still be measured."""
        return self.seconds - self.elapsed()

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{self.elapsed():5.0f} s] {self.piece}: {text}", flush=True)

    def note(self, text: str) -> None:
        """Something the reader must know; said and stored once."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(text)

    def run(self, items: Iterable[Item]) -> None:
        """Measure the items of a piece, as far as its minutes go."""
        with self.guard(self.piece):
            self.each(items, lambda item: item.run(self), alike=self.piece.startswith(CHECKED))

    def each(self, items: Iterable[Thing], run: Callable[[Thing], Any], alike: bool = False) -> None:
        """``run`` for every item while there is time; an item that fails is recorded and the next one starts.

        ``alike``: rows take about as long as one another, so that none starts in less time than the last ones took.
        """
        self._rows.clear()
        for item in items:
            label = str(item)
            if self.options.only not in label and not getattr(item, "always", False):
                continue
            expected = max(self._rows, default=0.0) if alike and self.bounded else 0.0
            if self.lost or self.left() <= expected:
                self.dropped.append(label)
                continue
            self.say(label)
            begin = self.now()
            with self.guard(label):
                run(item)
            self._rows.append(self.now() - begin)
            self.after_row()

    @contextlib.contextmanager
    def guard(self, name: str, who: str = "ours") -> Iterator[None]:
        """An error inside becomes a record of it; what another implementation cannot do is noted, save in dry runs."""
        try:
            yield
        except Exception as error:
            text = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            if who.startswith(PEERS) and not self.dry:
                self.note(f"{name} is left out: {text[:160]}")
            else:
                self.fail(name, text, traceback.format_exc())
            self._recover()

    def fail(self, name: str, text: str, trace: str = "") -> None:
        """Record an error."""
        self.errors.append({"piece": self.piece, "name": name, "error": text[:500], "traceback": trace[-6000:]})
        self.say(f"ERROR {name}: {text[:300]}")

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _recover(self) -> None:
        try:
            self.wait()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        except Exception as error:  # after an illegal access nothing more runs in this process
            self.lost = True
            self.note(f"the GPU can no longer be used by this process ({type(error).__name__}); the rest is dropped")

    def measure(
        self,
        name: str,
        runs: Mapping[str, Run],
        work: Mapping[str, float] | None = None,
        clock: Clock | None = None,
        patience: float = math.inf,
    ) -> dict[str, Timing]:
        """Timings of the functions that run; one that fails, or that there is no time for, is told and left out.

        Args:
            name: of the row.
            runs: by implementation.
            work: what the time of each grows with from row to row, in a unit that is the same in the whole piece, such
                as FLOPs; without it nothing is learned from these calls about the next ones.
            clock: another one than the piece's.
            patience: seconds of a call from which it is left out.
        """
        work = work or {}
        working: dict[str, Run] = {}
        first: dict[str, float] = {}
        found: dict[str, Timing] = {}
        once, later = [], 0.0  # seconds that those already called will take
        for who, run in runs.items():
            cost, left = self.pace.cost(who, work.get(who)), self.left() - later
            if cost.call >= patience:
                self.note(f"{name}, {who} is left out: one call would take about {cost.call / 60:.0f} minutes")
                continue
            if self.bounded and cost.whole >= left:
                told = f"it may take {cost.whole:.0f} s, and {left:.0f} s are left" if left > 0 else "no time is left"
                self.note(f"{name}, {who} is left out: {told}")
                continue
            with self.guard(f"{name}, {who}", who):
                begin = self.now()
                if self.dry:
                    found |= self.clock.measure({who: run})
                elif cost.call > ONCE and not self.bounded:
                    once.append(who)
                else:
                    run(0)
                    self.wait()  # so that an error is told of the one that made it
                first[who], working[who] = self.now() - begin, run
                later += cost.whole - cost.first - cost.call
        if working and not self.lost and not self.dry:
            found = (clock or self.clock).measure(working, once, self.left() if self.bounded else math.inf)
        for who, timing in found.items():
            self.pace.learn(who, work.get(who), first[who], timing.median / 1e3)
        return found

    def ours(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function with ``backend=`` in its Triton form, or, where that cannot run, in PyTorch, which is noted.

        The CPU tables are about what a user gets there.
        """
        if not self.bounded:
            return function

        def run(*arguments: Any, **options: Any) -> Any:
            try:
                return function(*arguments, backend="triton", **options)
            except BackendError as error:
                self.note(f"{getattr(function, '__name__', self.piece)} runs with backend=torch: {error}")
                return function(*arguments, backend="torch", **options)

        return run

    def add(self, row: Row, metric: str, value: float, unit: str = "", target: str | None = None) -> None:
        """Append one record; ``target`` is ``">= x"`` or ``"<= x"``."""
        shape, timing = row.shape, row.timing
        if self.dry and metric not in (CHECK, REPEATS):
            target = None
        reached = None if target is None else reaches(value, target)
        if not math.isfinite(value):
            self.fail(f"{row.name}, {row.implementation}", f"{metric} is {value}")
            value, reached = 0.0, None if target is None else False
        letters = dict(zip("BTHGD", (shape.batch, shape.length, shape.heads, shape.key_heads, shape.width)))
        about = row.name, letters, str(row.dtype).removeprefix("torch."), row.implementation, row.direction
        median, low, high = timing or (None, None, None)
        self.records.append(Record(self.piece, *about, median, low, high, metric, value, target, unit, reached))

    def content(self, interrupted: bool = False) -> dict[str, Any]:
        """All that is written to the file."""
        about = {**environment(self.device), "command": " ".join(["bench_kernels.py", *self.options.given])}
        about |= {"piece": self.piece, "seconds": round(self.elapsed(), 1), "interrupted": interrupted}
        records = [asdict(record) for record in self.records]
        rest = {"errors": self.errors, "dropped": self.dropped, "notes": self.notes}
        return {"environment": about, "records": records, **rest}
