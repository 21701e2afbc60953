"""A piece as it runs: what it measured, the errors that must not stop the rest, and its time."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from zoo_kernels.backend import BackendError
from zoo_kernels.bench.clock import Clock, Run, Timing, clock_of
from zoo_kernels.bench.record import CHECK, REPEATS, Record, Row, Shape, environment, reaches
from zoo_kernels.bench.registry import CHECKED, Item

Value = TypeVar("Value")

FLA = "flash-linear-attention"
PEERS = ("sdpa", "flex", FLA)  # how the names of other implementations begin
WORK = 0.93  # share of the minutes; the rest is for starting the process and for telling what was found
ONCE = 10.0  # seconds of a call from which it is made once, without a warm-up, where there is no limit
CALLS = 4  # of a slow function: one to warm up, two samples, one for its memory


@dataclass(frozen=True)
class Options:
    """What was asked for: options of scripts/bench_kernels.py, checked, whose help says what they mean.

    ``suite`` is "cpu" or "cuda", the set of pieces; a dry run has those of cuda on the CPU. ``scale`` is "full",
    "quick" or "dry", the table of shapes. ``out`` is the file of the CPU tables, the folder of others, or None.
    """

    device: torch.device
    suite: str
    scale: str
    pieces: tuple[str, ...]
    out: Path | None = None
    plot: Path | None = None
    threads: int = 0
    minutes: float = 8.0
    seconds: float = 280.0
    only: str = ""
    given: tuple[str, ...] = ()


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
        self.ceilings: dict[str, float] = {}  # per second, see timed.py
        self.pace: dict[str, tuple[float, float, float]] = {}  # work of the last row, seconds to compile and of a call
        self.after_row: Callable[[], None] = lambda: None  # the runner writes what there is until now
        self.now: Callable[[], float] = time.monotonic
        self.bounded = options.suite == "cuda"  # a CPU table only starts no row when the minutes are over
        self.seconds = options.minutes * 60 * (WORK if self.bounded else 1.0)
        self.lost = False  # whether this process can no longer use its GPU
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
        """Measure items while there is time; one that fails is recorded, and the next one starts.

        Checks take about as long as one another, so that none starts in less time than the last three took.
        """
        took = deque([0.0], maxlen=3)
        alike = self.bounded and self.piece.startswith(CHECKED)
        with self.guard(self.piece):
            for item in items:
                label, begin = str(item), self.now()
                if self.options.only not in label and not getattr(item, "always", False):
                    continue
                if self.lost or self.left() <= (max(took) if alike else 0.0):
                    self.dropped.append(label)
                    continue
                self.say(label)
                with self.guard(label):
                    item.run(self)
                took.append(self.now() - begin)
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
            try:
                self.wait()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
            except Exception as broken:  # after an illegal access nothing more runs in this process
                self.lost = True
                self.note(
                    f"the GPU can no longer be used by this process ({type(broken).__name__}); the rest is dropped"
                )

    def fail(self, name: str, text: str, trace: str = "") -> None:
        """Record an error."""
        self.errors.append({"piece": self.piece, "name": name, "error": text[:500], "traceback": trace[-6000:]})
        self.say(f"ERROR {name}: {text[:300]}")

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def measure(
        self, name: str, runs: Mapping[str, Run], work: float = 0.0, clock: Clock | None = None
    ) -> dict[str, Timing]:
        """Timings of the functions that run; one that fails, or that there is no time for, is told and left out.

        Args:
            name: of the row.
            runs: by implementation.
            work: what the time of each grows with from row to row, in a unit that is the same in the whole piece, such
                as FLOPs; with 0 nothing is known about these calls from others, and nothing learned.
            clock: another one than the piece's.
        """
        found: dict[str, Timing] = {}
        first: dict[str, float] = {}  # seconds of the first call
        once, later = [], 0.0  # seconds that those already called will take
        for who, run in runs.items():
            before, compiling, call = self.pace.get(who, (1.0, 0.0, 0.0)) if work else (1.0, 0.0, 0.0)
            call, left = call * work / before, self.left() - later
            alone = call > ONCE and not self.bounded
            whole = call if alone else compiling + CALLS * call
            if whole >= left:
                told = f"it may take {whole:.0f} s, and {left:.0f} s are left" if left > 0 else "no time is left"
                self.note(f"{name}, {who} is left out: {told}")
                continue
            with self.guard(f"{name}, {who}", who):
                begin = self.now()
                if self.dry:
                    found |= self.clock.measure({who: run})
                elif alone:
                    once.append(who)
                else:
                    run(0)
                    self.wait()  # so that an error is told of the one that made it
                first[who] = self.now() - begin
                later += whole if alone else whole - compiling - call
        if first and not self.lost and not self.dry:
            limit = self.left() if self.bounded else math.inf
            found = (clock or self.clock).measure({who: runs[who] for who in first}, once, limit)
        for who, timing in found.items() if work else ():
            call = timing.median / 1e3
            self.pace[who] = work, max(0.0, first[who] - call), call
        return found

    def ours(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function with ``backend=`` in its Triton form, or, where that cannot run, in PyTorch, which is noted.

        The CPU tables are about what a user gets there.
        """

        def run(*arguments: Any, **options: Any) -> Any:
            if not self.bounded:
                return function(*arguments, backend="auto", **options)
            try:
                return function(*arguments, backend="triton", **options)
            except BackendError as error:
                self.note(f"measured with backend=torch: {error}")
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
