"""Search for faster tiles of one kernel on this GPU, run by scripts/tune_kernels.py only.

A candidate counts only if every output and gradient of every call that launches the kernel is as near to the reference
as the plain PyTorch form is; then it is timed. Winners go to a file that ATTENTION_ZOO_CONFIGS names
(zoo_kernels.launch.choose).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zoo_kernels.family import families
from zoo_kernels.launch import ARCHITECTURES, CONFIGS_VARIABLE, Config, Table, architecture, record
from zoo_kernels.tools.calls import Call, Size, every_call
from zoo_kernels.tools.check import FormCheck

Timer = Callable[[Callable[[], Any]], float]
GAIN = 1.02  # a winner must be this much faster than what ships, or noise would choose
SMALLEST_TILE, LARGEST_TILE, WARPS, STAGES = 16, 256, (2, 4, 8), (1, 2, 3, 4)


class TileRow(NamedTuple):
    """A row of the tables of tiles.

    Attributes:
        family: name of the family.
        kernel: name of the kernel in its family.
        architecture: GPU architecture.
        size: bytes of a number.
        width: head width.
    """

    family: str
    kernel: str
    architecture: str
    size: int
    width: int

    @property
    def table(self) -> Table:
        """The table of tiles of the family."""
        return families()[self.family].tiles

    @property
    def config(self) -> Config:
        """The configuration that the row holds now."""
        return self.table[self.kernel][self.architecture][self.size, self.width]


class Trial(NamedTuple):
    """A candidate with its time, or the reason why it was rejected."""

    config: Config
    milliseconds: float | None
    reason: str = ""


def find_row(kernel: str, dtype: torch.dtype, width: int, device: torch.device) -> TileRow:
    """Finds the row that serves ``kernel`` (FAMILY.KERNEL) for heads of width ``width`` on ``device``.

    Raises:
        ValueError: if there is none; it lists the kernels.
    """
    family, _, name = kernel.partition(".")
    names = [f"{f.name}.{k}" for f in families().values() for k in f.tiles]
    if kernel not in names:
        raise ValueError(f"kernel={kernel!r}: expected one of {', '.join(names)}.")
    row = TileRow(family, name, architecture(device), dtype.itemsize, width)
    wider = [w for size, w in row.table[name][row.architecture] if size == row.size and w >= width]
    if not wider:
        raise ValueError(f"width={width}: {kernel} has no row that wide.")
    return row._replace(width=min(wider))


@contextmanager
def using(row: TileRow, config: Config) -> Iterator[None]:
    """Context manager in which ``row`` holds ``config``; the file that ATTENTION_ZOO_CONFIGS names is not read."""
    before, file = row.table[row.kernel], os.environ.pop(CONFIGS_VARIABLE, None)
    rows = {**before[row.architecture], (row.size, row.width): config}
    row.table[row.kernel] = {
        **before,
        row.architecture: rows,
    }  # kernels may share rows: none is changed in place
    try:
        yield
    finally:
        row.table[row.kernel] = before
        if file is not None:
            os.environ[CONFIGS_VARIABLE] = file


def candidates(config: Config, limit: int = 64) -> list[Config]:
    """Returns configurations around ``config``: tiles halved and doubled, other warps and stages.

    ``config`` comes first, then those that change least, ``limit`` in all.
    """
    sizes = []
    for size in config.tiles.values():
        near = {size, size // 2, size * 2}
        sizes.append([s for s in near if s == size or SMALLEST_TILE <= s <= max(LARGEST_TILE, size)])
    found = []
    for tiles, warps, stages in product(product(*sizes), {*WARPS, config.warps}, {*STAGES, config.stages}):
        if abs(stages - config.stages) > 1:
            continue
        made = Config(dict(zip(config.tiles, tiles)), warps, stages)
        moved = sum(a != b for a, b in zip(tiles, config.tiles.values()))
        moved += (warps != config.warps) + (stages != config.stages)
        found.append((moved, tiles, warps, stages, made))
    return [made for *_, made in sorted(found, key=lambda x: x[:4])][:limit]


def calls_of(row: TileRow, calls: Iterable[Call], size: Size) -> list[Call]:
    """Selects the calls that launch the kernel of ``row``."""
    anywhere = row._replace(architecture=row.architecture if row.architecture in ARCHITECTURES else ARCHITECTURES[-1])
    keys = anywhere.table[row.kernel][anywhere.architecture]
    width = min(w for s, w in keys if s == row.size and w >= size.width)
    anywhere = anywhere._replace(width=width)
    sign = Config(dict(anywhere.config.tiles), anywhere.config.warps, anywhere.config.stages)
    found = []
    for call in calls:
        if call.family != row.family:
            continue
        with using(anywhere, sign), record(anywhere.architecture) as launches:
            call.run(call.inputs(size._replace(length=call.length, device="cpu")), "triton")
        if any(launch.config.tiles is sign.tiles for launch in launches):
            found.append(call)
    return found


def benchmark(run: Callable[[], Any]) -> float:
    """Times ``run`` on the GPU: the median of many runs, in milliseconds."""
    from triton.testing import do_bench

    return float(do_bench(run, return_mode="median"))


def tune(
    row: TileRow,
    small: Size,
    large: Size,
    *,
    calls: Iterable[Call] | None = None,
    timer: Timer = benchmark,
    tried: Callable[[Trial], None] = lambda trial: None,
    limit: int = 64,
) -> list[Trial]:
    """Tries candidates for ``row``, the current configuration first: outputs at ``small``, then times at ``large``.

    Args:
        row: row of the tables to tune.
        small: size at which outputs are checked.
        large: size at which calls are timed.
        calls: calls to run if they launch the kernel; None for those of all families.
        timer: measures a call in milliseconds.
        tried: called with each trial when it is over.
        limit: largest number of candidates.

    Raises:
        ValueError: if no call launches the kernel.
    """
    chosen = calls_of(row, every_call() if calls is None else calls, small)
    if not chosen:
        raise ValueError(f"no call of kernels/zoo_kernels/{row.family}/calls.py launches {row.family}.{row.kernel}.")
    checks = [FormCheck(call, small) for call in chosen]
    inputs = [call.inputs(large) for call in chosen]

    def everything() -> None:
        for call, given in zip(chosen, inputs):
            call.run(given, "triton")

    trials = []
    for config in candidates(row.config, limit):
        with using(row, config):
            trials.append(_try(config, checks, lambda: timer(everything)))
        tried(trials[-1])
    return trials


def _try(config: Config, checks: list[FormCheck], time: Callable[[], float]) -> Trial:
    try:
        for check in checks:
            if (fault := check.fault()) is not None:
                return Trial(config, None, f"wrong: {fault}")
        return Trial(config, time())
    except Exception as error:  # of the compiler, the launch or the GPU: all say that this candidate cannot be used
        return Trial(config, None, f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}")


def winner(trials: list[Trial]) -> Trial | None:
    """Returns the fastest trial if it beats the first one, the current configuration, by more than noise."""
    timed = [trial for trial in trials if trial.milliseconds is not None]
    if not timed:
        return None
    best = min(timed, key=lambda trial: trial.milliseconds or 0.0)
    shipped = trials[0].milliseconds
    gained = shipped is None or (best.milliseconds or 0.0) * GAIN < shipped
    return best if gained and best is not trials[0] else None


def as_record(row: TileRow, trials: list[Trial], best: Trial, device: torch.device) -> dict[str, Any]:
    """Formats ``best`` as an entry of the file of tuned tiles, with where and when it was measured."""
    import triton

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    entry = {"family": row.family, "kernel": row.kernel, "architecture": row.architecture, "bytes": row.size}
    entry |= {"width": row.width, "tiles": best.config.tiles, "warps": best.config.warps, "stages": best.config.stages}
    entry |= {"milliseconds": best.milliseconds, "shipped_milliseconds": trials[0].milliseconds}
    return {**entry, "gpu": gpu, "date": now, "torch": torch.__version__, "triton": triton.__version__}


def save(file: Path, entry: dict[str, Any]) -> None:
    """Writes ``entry`` into ``file`` atomically, in place of an older entry for the same row."""
    same = ("kernel", "architecture", "bytes", "width")
    kept = json.loads(file.read_text(encoding="utf-8"))["configs"] if file.exists() else []
    kept = [old for old in kept if any(old[key] != entry[key] for key in same)]
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.write_text(json.dumps({"configs": [*kept, entry]}, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
