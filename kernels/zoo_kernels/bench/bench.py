"""A piece as it runs: what it measured, the errors that must not stop the rest, and its time."""

from __future__ import annotations

import contextlib
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from zoo_kernels.backend import BackendError
from zoo_kernels.bench.clock import CLOCKS, Clock, Run
from zoo_kernels.bench.record import CHECK, REPEATS, Record, Shape, Timing, reaches
from zoo_kernels.bench.registry import Item

Value = TypeVar("Value")
FLA = "flash-linear-attention"
PEERS = ("sdpa", "flex", "transformers", "conv1d", FLA)  # how the names of other implementations begin


@dataclass(frozen=True)
class Options:
    """What was asked for: options of scripts/bench_kernels.py, checked, whose help says what they mean.

    ``suite`` is "cpu" or "cuda", the set of pieces; a dry run has those of cuda on the CPU. ``scale`` is "full",
    "quick" or "dry", the table of shapes.
    """

    device: torch.device
    suite: str
    scale: str
    pieces: tuple[str, ...]
    out: Path | None = None
    threads: int = 0
    minutes: float = 8.0
    only: str = ""


@dataclass
class Found:
    """Results that a step has so far; ``complete`` says that nothing is missing."""

    complete: bool = False
    records: list[Record] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Bench:
    """A piece or step: its options and clock, what it found, and what later rows are compared with.

    Args:
        options: of the run.
        piece: name of the piece.
        seconds: in which rows may begin.
        keep: is given what was found until then before every row, and at the end.
    """

    def __init__(
        self,
        options: Options,
        piece: str,
        seconds: float = math.inf,
        keep: Callable[[Found], None] = lambda found: None,
    ) -> None:
        self.options, self.piece, self.keep, self.found = options, piece, keep, Found()
        self.device, self.dry = options.device, options.scale == "dry"
        self.clock = CLOCKS[options.device.type if options.scale == "full" else options.scale]
        self.times: dict[tuple[str, Shape, str], dict[str, Timing]] = {}  # name, shape, direction; by implementation
        self.ceilings: dict[str, float] = {}  # per second, see timed.py
        self.lost = False  # whether this process can no longer use its GPU
        self._begin, self._end = time.monotonic(), time.monotonic() + seconds

    @property
    def dtype(self) -> torch.dtype:
        """The type that speed is measured in: bf16, or fp32 where the interpreter or the CPU computes."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def pick(self, full: Value, dry: Value, quick: Value | None = None) -> Value:
        """The value that goes with the scale of this run."""
        if self.dry:
            return dry
        return quick if self.options.scale == "quick" and quick is not None else full

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self._begin:5.0f} s] {self.piece}: {text}", flush=True)

    def note(self, text: str) -> None:
        """Something the reader must know; said and stored once."""
        if text not in self.found.notes:
            self.found.notes.append(text)
            self.say(text)

    def fail(self, name: str, text: str, trace: str = "") -> None:
        """Record an error."""
        self.found.errors.append({"name": name, "error": text[:500], "traceback": trace[-6000:]})
        self.say(f"ERROR {name}: {text[:300]}")

    def run(self, items: Iterable[Item]) -> None:
        """Measure items while there is time; one that fails is recorded, and the next one starts."""
        with self.guard(self.piece):
            for item in items:
                label = str(item)
                if self.options.only not in label and not getattr(item, "always", False):
                    continue
                if self.lost or time.monotonic() >= self._end:
                    self.found.dropped.append(label)
                    continue
                self.say(label)
                self.keep(self.found)
                with self.guard(label):
                    item.run(self)
        self.found.complete = not self.found.dropped and not self.lost
        self.keep(self.found)

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
                self.note(f"this process can no longer use its GPU ({type(broken).__name__}); the rest is dropped")

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def measure(self, name: str, runs: Mapping[str, Run], clock: Clock | None = None) -> dict[str, Timing]:
        """Timings of the functions that run; one that fails is told and left out.

        Args:
            name: of the row.
            runs: by implementation.
            clock: another one than the piece's.
        """
        clock, first = self.clock if self.dry or clock is None else clock, {}
        for who, run in runs.items():
            with self.guard(f"{name}, {who}", who):
                if self.device.type == "cuda" or who == "flex":  # nothing else is compiled
                    run(0)
                    self.wait()  # so that an error is told of the one that made it
                first[who] = clock.sample(run, 1)
        return {} if self.lost else clock.measure({who: runs[who] for who in first}, first)

    def ours(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function with ``backend=`` in its Triton form, or, where that cannot run, in PyTorch, which is noted.

        The CPU tables are about what a user gets there.
        """

        def run(*arguments: Any, **options: Any) -> Any:
            if self.options.suite == "cpu":
                return function(*arguments, backend="auto", **options)
            try:
                return function(*arguments, backend="triton", **options)
            except BackendError as error:
                self.note(f"measured with backend=torch: {error}")
                return function(*arguments, backend="torch", **options)

        return run

    def row(self, name: str, shape: Shape, who: str, direction: str, timing: Timing | None = None) -> Record:
        """What numbers in the type of this run are about."""
        return Record(name, shape, str(self.dtype).removeprefix("torch."), who, direction, timing)

    def add(self, row: Record, metric: str, value: float, unit: str = "", target: str | None = None) -> None:
        """Append a number about a row; ``target`` is ``">= x"`` or ``"<= x"``."""
        if self.dry and metric not in (CHECK, REPEATS):
            target = None
        reached = None if target is None else reaches(value, target)
        if not math.isfinite(value):
            self.fail(f"{row.name}, {row.implementation}", f"{metric} is {value}")
            value, reached = 0.0, None if target is None else False
        record = row._replace(piece=self.piece, metric=metric, value=value, unit=unit, target=target, reached=reached)
        self.found.records.append(record)
