"""Compile every shipped configuration of the Triton kernels for GPUs that need not be here, and refuse bad ones.

    python scripts/compile_kernels.py [kernel=linear.mix] [width=64,128] [OPTION=VALUE ...]

`make kernels` compiles everything (ten minutes on two cores), CI the main calls (CALLS=main). The status is 1, with a
list, if a kernel does not compile, spills a register, takes more shared memory than a block may have, computes
addresses in 32 bits, or if no call of its family's calls.py launches a row of the tables.

The table has a line for each row of kernels/zoo_kernels/*/triton/configs.py with the highest figures of its binaries;
FILE.json has all. Triton keeps what it has compiled in ~/.triton (TRITON_CACHE_DIR), so a second run is short.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # before a kernel is imported: interpreted ones cannot be compiled
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo.cli import answer_ctrl_c, friendly_errors

if __name__ == "__main__":
    answer_ctrl_c()

import torch

from zoo.files import replace_text
from zoo.schema.arguments import Arguments, OutputFile, read_arguments
from zoo.schema.base import Positive, option
from zoo_kernels.family import families
from zoo_kernels.launch import ARCHITECTURES, CONFIGS_VARIABLE, Config, Table, record
from zoo_kernels.tools.aot import Compilation, Compiled, compile_all, job
from zoo_kernels.tools.calls import Call, Size, every_call
from zoo_kernels.tools.tuner import TileRow

FAMILIES = tuple(families())
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
COLUMNS = ("kernel", "arch", "bytes", "width", "tiles", "warps", "stages", "registers", "stack", "shared")
COLUMNS += ("wgmma", "tma", "mma", "narrow", "wide", "binaries", "heaviest")


class Marked(Config):
    """A configuration that knows its row, also after a host function has cut its tiles."""

    row: TileRow

    def _replace(self, **changes: Any) -> Marked:
        made = super()._replace(**changes)
        made.row = self.row
        return made


class Binary(NamedTuple):
    """A job and the calls, by row, that need it."""

    job: Compilation
    users: dict[TileRow, set[str]]


class Options(Arguments):
    """Options of the compilation."""

    arch: Literal["all", "sm_80", "sm_90"] = option("architecture of the GPU", default="all")
    family: list[Literal[FAMILIES]] = option("families of kernels", default=list(FAMILIES), min_length=1)
    kernel: list[str] = option("kernels, as linear.mix; empty: all", default=[])
    width: list[Positive] = option("widths of heads; empty: all", default=[])
    dtype: list[Literal["bf16", "fp16", "fp32"]] = option("types of the inputs", default=["bf16", "fp32"], min_length=1)
    calls: Literal["all", "main"] = option(
        "calls of each family's calls.py; all: every call for 16-bit rows, the main ones for 32-bit rows; "
        "main: leaves out calls that differ from others in a flag or two",
        default="all",
    )
    jobs: Positive = option("processes", default=os.cpu_count() or 2)
    out: OutputFile | None = option("file of the JSON; empty: the table is only printed", default=None)


def mark(family: str, table: Table) -> list[TileRow]:
    """Give every configuration of ``table`` its row, in place; the rows."""
    rows = []
    for kernel, by_architecture in table.items():
        table[kernel] = {}
        for architecture, configs in by_architecture.items():
            table[kernel][architecture] = {}
            for key, config in configs.items():
                marked = table[kernel][architecture][key] = Marked(*config)
                marked.row = TileRow(family, kernel, architecture, *key)
                rows.append(marked.row)
    return [row for row in rows if row.architecture in ARCHITECTURES]


def gather(call: Call, size: Size, architecture: str, found: dict[str, Binary]) -> None:
    """Add to ``found``, by key, the binaries that ``call`` needs."""
    with record(architecture) as launches:
        call.run(call.inputs(size), "triton")
    for launch in launches:
        made = job(launch, architecture)
        found.setdefault(made.key, Binary(made, {})).users.setdefault(launch.config.row, set()).add(call.name)


def compile_them(binaries: dict[str, Binary], workers: int) -> dict[str, Compiled]:
    """Cost of each binary by its key, under a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    costs = {}
    columns = TextColumn("{task.description:50}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("compiling", total=len(binaries))
        for done, cost in compile_all([b.job for b in binaries.values()], workers):
            costs[done.key] = cost
            progress.update(bar, advance=1, description=f"{done.kernel.name} {done.architecture}")
    return costs


def lines(binaries: dict[str, Binary], costs: dict[str, Compiled]) -> list[dict[str, Any]]:
    """A record for each row of the tables that was launched: the highest figures of its binaries."""
    of_row = defaultdict(list)
    for key, binary in binaries.items():
        for row, calls in binary.users.items():
            of_row[row].append((binary.job, costs[key], ", ".join(sorted(calls))))
    found = []
    for row, members in sorted(of_row.items()):
        top, cost, calls = max(members, key=lambda m: (m[1].stack, m[1].registers, m[1].shared))
        line: dict[str, Any] = {"kernel": f"{row.family}.{row.kernel}", "arch": row.architecture, "bytes": row.size}
        line |= {"width": row.width, "tiles": " ".join(f"{k}={v}" for k, v in row.config.tiles.items())}
        line |= {"warps": top.warps, "stages": top.stages}
        for name in ("registers", "stack", "shared"):
            line[name] = max(getattr(cost, name) for _, cost, _ in members)
        line |= {"wgmma": cost.wgmma, "tma": cost.tma, "mma": cost.mma}
        line |= {"narrow": cost.offsets.narrow, "wide": cost.offsets.wide, "binaries": len(members), "heaviest": calls}
        found.append(line)
    return found


def show(records: list[dict[str, Any]]) -> None:
    """Print them as a table."""
    cells = [COLUMNS]
    for line in records:
        line = {**line, "shared": f"{line['shared'] / 1024:.0f}K", "heaviest": line["heaviest"][:40]}
        cells.append(tuple(str(line[column]) for column in COLUMNS))
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def judge(
    binaries: dict[str, Binary], costs: dict[str, Compiled], rows: Iterable[TileRow]
) -> tuple[list[str], list[str]]:
    """Why the kernels must not ship, and what makes them slow, a line each."""
    faults, warnings = [], []
    launched = {row for binary in binaries.values() for row in binary.users}
    for key, binary in binaries.items():
        row, calls = min(binary.users.items())
        where = f"{row.family}.{row.kernel} {row.architecture}, {row.size} bytes, width {row.width}"
        where += f" ({', '.join(sorted(calls))}; {' '.join(f'{k}={x}' for k, x in binary.job.flags.items())})"
        faults += [f"{where}: {fault}" for fault in costs[key].faults(binary.job)]
        warnings += [f"{where}: {warning}" for warning in costs[key].warnings(binary.job)]
    faults += [
        f"{' '.join(map(str, row))}: no call of kernels/zoo_kernels/{row.family}/calls.py launches it"
        for row in rows
        if row not in launched
    ]
    return sorted(faults), sorted(warnings)


def choose_rows(chosen: Options) -> list[TileRow]:
    """The rows that the options ask for; every configuration is marked with its row."""
    each_once = dict.fromkeys(chosen.family)  # a row is marked in place
    rows = [row for name in each_once for row in mark(name, families()[name].tiles)]
    if unknown := set(chosen.kernel) - {f"{r.family}.{r.kernel}" for r in rows}:
        names = sorted({f"{r.family}.{r.kernel}" for r in rows})
        raise ValueError(f"kernel={','.join(sorted(unknown))}: expected some of {', '.join(names)}.")
    sizes = {DTYPES[name].itemsize for name in chosen.dtype}
    rows = [r for r in rows if chosen.arch in ("all", r.architecture) and r.size in sizes]
    rows = [r for r in rows if not chosen.width or r.width in chosen.width]
    rows = [r for r in rows if not chosen.kernel or f"{r.family}.{r.kernel}" in chosen.kernel]
    if not rows:
        raise ValueError("no row of the tables of tiles fits these options.")
    return rows


def collect(rows: list[TileRow], chosen: Options) -> dict[str, Binary]:
    """The binaries of ``rows`` by key."""
    found: dict[str, Binary] = {}
    for family, architecture, size, width in sorted({(r.family, r.architecture, r.size, r.width) for r in rows}):
        every = chosen.calls == "all" and size == 2
        calls = [call for call in every_call() if call.family == family and (call.main or every)]
        for dtype in (DTYPES[name] for name in dict.fromkeys(chosen.dtype) if DTYPES[name].itemsize == size):
            for call in calls:
                gather(call, Size(width, call.length, dtype=dtype), architecture, found)
    return {key: binary for key, binary in found.items() if not binary.users.keys().isdisjoint(rows)}


def main() -> int:
    """Record, compile, print, judge; the exit status."""
    begin, (chosen, _) = time.perf_counter(), read_arguments(Options, sys.argv[1:], __doc__)
    os.environ.pop(CONFIGS_VARIABLE, None)  # what ships is checked
    rows = choose_rows(chosen)
    binaries = collect(rows, chosen)
    print(f"{len(rows)} rows of the tables, {len(binaries)} binaries", flush=True)
    costs = compile_them(binaries, chosen.jobs)
    records = lines(binaries, costs)
    show(records)
    faults, warnings = judge(binaries, costs, rows)
    for title, found in (("slow", warnings), ("FAILED", faults)):
        print("".join(f"\n{title}: {line}" for line in found), end="\n" if found else "")
    if chosen.out:
        about = {"torch": torch.__version__, "triton": version("triton")}
        every = [{**b.job._asdict(), **costs[k]._asdict(), "users": [*map(str, b.users)]} for k, b in binaries.items()]
        text = json.dumps({"about": about, "rows": records, "binaries": every, "faults": faults}, indent=1, default=str)
        replace_text(Path(chosen.out), text + "\n")
    print(f"{len(faults)} faults, {len(warnings)} warnings, {time.perf_counter() - begin:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    with friendly_errors():
        sys.exit(main())
