"""What all pieces share: the clock, the records, the errors that must not stop the rest, and the file."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from kernel_bench.machine import environment
from kernel_bench.options import Options
from kernel_bench.pace import OutOfTime, Pace
from kernel_bench.timing import Run, Timing, timer_for
from zoo.files import replace_text
from zoo_kernels import BackendError

Item = TypeVar("Item")

CHECK, REPEATS = "error / allowance", "arrays that differ"  # metrics of correctness, which hold in a dry run too
FLA = "flash-linear-attention"
PEERS = ("sdpa", "flex", FLA)  # how the names of other implementations begin
WORK = 0.93  # share of the minutes; the rest is for starting the process and for telling what was found


class Shape(NamedTuple):
    """Batch, tokens, query heads, head width, and key heads if they are fewer."""

    batch: int
    length: int
    heads: int
    width: int
    groups: int = 0

    def __str__(self) -> str:
        keys = f" G{self.groups}" if self.groups else ""
        return f"B{self.batch} T{self.length} H{self.heads}{keys} D{self.width}"

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.groups or self.heads


class Row(NamedTuple):
    """What a number is about; ``direction`` is forward, backward or forward+backward."""

    name: str
    shape: Shape
    dtype: torch.dtype
    implementation: str
    direction: str
    timing: Timing | None = None


@dataclass(frozen=True)
class Record:
    """One number. ``target`` is a bound such as ">= 2"; ``reached`` says whether the value keeps it."""

    piece: str
    name: str
    shape: dict[str, int]
    dtype: str
    implementation: str
    direction: str
    milliseconds: float | None
    low: float | None
    high: float | None
    metric: str
    value: float
    target: str | None
    unit: str
    reached: bool | None


class Bench:
    """One piece as it runs: what it measured, what failed, what there was no time for."""

    def __init__(self, options: Options, piece: str) -> None:
        self.options, self.piece = options, piece
        self.device, self.scale, self.dry = options.device, options.scale, options.dry
        self.timer = timer_for(options.device, options.scale)
        self.records: list[Record] = []
        self.errors: list[dict[str, str]] = []
        self.dropped: list[str] = []
        self.notes: list[str] = []
        self.bandwidth: float | None = None  # measured bytes per second, see ceilings.py
        self.matrix_rate: float | None = None  # and FLOPs per second
        self.after_row: Callable[[], None] = lambda: None  # run.py writes what there is until now
        self.now: Callable[[], float] = time.monotonic
        self.bounded = options.suite == "cuda"  # a CPU table only starts no row when the minutes are over
        self.seconds = options.minutes * 60 * (WORK if self.bounded else 1.0)
        self._pace, self._rows = Pace(), deque[float](maxlen=3)
        self._begin, self._lost = self.now(), False

    def elapsed(self) -> float:
        """Seconds since the piece began."""
        return self.now() - self._begin

    @property
    def lost(self) -> bool:
        """Whether this process can no longer use its GPU."""
        return self._lost

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

    def each(
        self, items: Iterable[Item], run: Callable[[Item], Any], name: Callable[[Item], str] = str, alike: bool = False
    ) -> None:
        """``run`` for every item while there is time; an item that fails is recorded and the next one starts.

        ``alike``: rows take about as long as one another, so that none starts in less time than the last ones took.
        """
        self._rows.clear()
        for item in items:
            label = name(item)
            if self.options.only not in label:
                continue
            expected = max(self._rows, default=0.0) if alike and self.bounded else 0.0
            if self._lost or self.left() <= expected:
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
        except OutOfTime:
            self.note(f"{name} was cut off: the {self.options.minutes:g} minutes are over")
            self._recover()
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

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _recover(self) -> None:
        if self.device.type != "cuda":
            return
        try:
            self._wait()
            torch.cuda.empty_cache()
        except Exception as error:  # after an illegal access nothing more runs in this process
            self._lost = True
            self.note(f"the GPU can no longer be used by this process ({type(error).__name__}); the rest is dropped")

    def measure(
        self, name: str, runs: Mapping[str, Run], once: Collection[str] = (), work: float | None = None
    ) -> dict[str, Timing]:
        """Timings of the functions that run; one that fails, or that there is no time for, is told and left out.

        ``work``: what the time of each grows with from row to row, in a unit that is the same in the whole piece, such
        as FLOPs; None leaves these calls out of what is learned about the next ones.
        """
        working: dict[str, Run] = {}
        first: dict[str, float] = {}
        found: dict[str, Timing] = {}
        later = 0.0  # seconds that those already called will take
        for who, run in runs.items():
            cost, left = self._pace.cost(who, work), self.left() - later
            if self.bounded and cost.whole >= left:
                told = f"it may take {cost.whole:.0f} s, and {left:.0f} s are left" if left > 0 else "no time is left"
                self.note(f"{name}, {who} is left out: {told}")
                continue
            with self.guard(f"{name}, {who}", who):
                begin = self.now()
                if self.dry:
                    found |= self.timer.measure({who: run})
                elif who not in once:
                    run(0)
                    self._wait()  # so that an error is told of the one that made it
                first[who], working[who] = self.now() - begin, run
                later += cost.whole - cost.first - cost.call
        if working and not self._lost and not self.dry:
            found = self.timer.measure(working, once, self.left() if self.bounded else math.inf)
        for who, timing in found.items():
            self._pace.learn(who, work, first[who], timing.median / 1e3)
        return found

    def ours(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The kernel in its Triton form, or, where that cannot run, in PyTorch, which is then noted."""
        if "backend" not in inspect.signature(function).parameters:
            self.note(f"{function.__name__} has one form only")
            return function

        def run(*arguments: Any, **options: Any) -> Any:
            try:
                return function(*arguments, backend="triton", **options)
            except BackendError as error:
                self.note(f"{function.__name__} runs with backend=torch: {error}")
                return function(*arguments, backend="torch", **options)

        return run

    def add(self, row: Row, metric: str, value: float, unit: str = "", target: str | None = None) -> None:
        """Append one record; ``target`` is ``">= x"`` or ``"<= x"``."""
        shape = row.shape
        letters = {"B": shape.batch, "T": shape.length, "H": shape.heads, "G": shape.key_heads, "D": shape.width}
        if self.dry and metric not in (CHECK, REPEATS):
            target = None
        reached = None if target is None else _reached(value, target)
        if not math.isfinite(value):
            self.fail(f"{row.name}, {row.implementation}", f"{metric} is {value}")
            value, reached = 0.0, None if target is None else False
        kind, timing = str(row.dtype).removeprefix("torch."), row.timing
        record = Record(
            self.piece,
            row.name,
            letters,
            kind,
            row.implementation,
            row.direction,
            milliseconds=timing.median if timing else None,
            low=timing.low if timing else None,
            high=timing.high if timing else None,
            metric=metric,
            value=value,
            target=target,
            unit=unit,
            reached=reached,
        )
        self.records.append(record)

    def content(self, interrupted: bool = False) -> dict[str, Any]:
        """All that is written to the file."""
        about = {**environment(self.device), "command": " ".join(["bench_kernels.py", *self.options.given])}
        about |= {"piece": self.piece, "seconds": round(self.elapsed(), 1), "interrupted": interrupted}
        records = [asdict(record) for record in self.records]
        rest = {"errors": self.errors, "dropped": self.dropped, "notes": self.notes}
        return {"environment": about, "records": records, **rest}


def _reached(value: float, target: str) -> bool:
    relation, bound = target.split()
    return value >= float(bound) if relation == ">=" else value <= float(bound)


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file of results in one piece."""
    replace_text(file, json.dumps(content, indent=1, allow_nan=False) + "\n")
