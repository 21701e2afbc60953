"""Speed and correctness of the kernels, in turn beside PyTorch and other libraries, in one process.

    python scripts/bench_kernels.py device=cpu [piece=linear,decode] [out=FILE.json] [plot=FILE.png]
        [table=FILE.md] [quick=true]
    python scripts/bench_kernels.py device=cuda piece=correctness [out=FILE.json] [minutes=8] [only=TEXT]
    python scripts/bench_kernels.py device=cuda piece=first [minutes=4.6] [out=FILE.json]
    TRITON_INTERPRET=1 python scripts/bench_kernels.py device=cpu dry=true piece=all   # the GPU's pieces without one

On the CPU: the ratios that the project promises there. On a GPU: pieces, each of which ends within `minutes` in a
compact table. All results are in one file, written anew after every row, of which an interrupted run loses none; what
there was no time for is named. A first word names all pieces that begin with it: `piece=correctness`,
`piece=contexts`. `piece=first` is for the first minutes on a GPU: it checks every kernel at small sizes by processes
side by side, then times the headline cases, the most telling first; a second call goes on with what is missing.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from zoo.cli import answer_ctrl_c, choose_device, friendly_errors

if __name__ == "__main__":
    answer_ctrl_c()

from annotated_types import Ge, Lt

from zoo.files import replace_text
from zoo.schema.arguments import Arguments, read_arguments
from zoo.schema.base import Count, Flag, option
from zoo.tables import Cell, Table, titled_markdown
from zoo_kernels.bench.bench import Options
from zoo_kernels.bench.record import Record
from zoo_kernels.bench.registry import FIRST, chosen_pieces, names_of
from zoo_kernels.bench.report import short
from zoo_kernels.bench.run import run

RESULTS = ROOT / "runs" / "kernels.json"  # where a GPU's results are if nothing else is said
MINUTES, FIRST_MINUTES = 8.0, 4.6
Amount = Annotated[float, Ge(0), Lt(1e6)]
ROWS = {  # titles by the names of rows over contexts
    "training": "Forward and backward",
    "decode": "A step of decoding after a context",
    "convolution": "Short convolution, forward and backward",
}
MARKS = "<!-- measured -->", "<!-- /measured -->"  # around the tables in a file of Markdown


class Given(Arguments):
    """Options as they are typed."""

    device: str = option("auto, cpu or cuda", default="auto")
    piece: str = option(
        "all, or names and their first words with commas between them. On the CPU: "
        f"{', '.join(names_of('cpu'))}. On a GPU: {', '.join(names_of('cuda'))}, or {FIRST} alone",
        default="all",
    )
    out: str = option("file of the results; if empty none on a CPU, runs/kernels.json on a GPU", default="")
    plot: str = option("file of the PNG of the CPU tables; empty: none", default="")
    table: str = option(
        "file of Markdown that gets the CPU tables between its marks of what was measured; empty: none", default=""
    )
    quick: Flag = option("fewer shapes of the CPU tables", default=False)
    dry: Flag = option("the GPU's pieces on the CPU with tiny shapes, to try the path", default=False)
    threads: Count = option("of PyTorch; 0: as many as it takes", default=0)
    minutes: Amount = option(
        f"that a piece may take on a GPU, {FIRST} in all; on the CPU no row begins when they are over. "
        f"0: {MINUTES:g}, {FIRST_MINUTES:g} of {FIRST}",
        default=0.0,
    )
    only: str = option("keep rows whose name holds this text; empty: all", default="")


def parse(arguments: list[str], usage: str = "") -> tuple[Options, Given]:
    """Options from KEY=VALUE arguments, and as they were typed; ``--help`` prints ``usage`` and all options.

    Raises:
        ValueError: on an unknown key, piece or device, or a value that is not of its type.
    """
    given, _ = read_arguments(Given, arguments, usage)
    device = choose_device(given.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={given.device}: expected cpu or cuda.")
    if given.dry and device.type != "cpu":
        raise ValueError("dry=true goes with device=cpu.")
    suite = "cuda" if given.dry else device.type
    if suite == "cuda" and (given.quick or given.plot or given.table):
        raise ValueError("quick, plot and table belong to the CPU; on CUDA choose by piece=, only= and minutes=.")
    if given.table:
        parts_of(Path(given.table))
    pieces = chosen_pieces(given.piece, suite)
    options = Options(
        device=device,
        suite=suite,
        scale="dry" if given.dry else "quick" if given.quick else "full",
        pieces=pieces,
        out=Path(given.out) if given.out else RESULTS if device.type == "cuda" else None,
        threads=given.threads,
        minutes=given.minutes or (FIRST_MINUTES if pieces == (FIRST,) else MINUTES),
        only=given.only,
    )
    return options, given


def parts_of(file: Path) -> tuple[str, str]:
    """What stands before and behind the tables in a file of Markdown.

    Raises:
        ValueError: if it cannot be read or has no marks.
    """
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    before, begin, rest = text.partition(MARKS[0])
    _, end, behind = rest.partition(MARKS[1])
    if not end:
        raise ValueError(f"table={file}: expected a file of Markdown with {' and '.join(MARKS)} in it.")
    return before + begin, end + behind


def tables(records: Iterable[Record]) -> list[Table]:
    """A table for each kind of row over contexts: what was measured of each implementation, with its target."""
    from zoo.plotting import tokens

    found: dict[str, dict[str, dict[int, Record]]] = {name: defaultdict(dict) for name in ROWS}
    for r in (r for r in records if r.name in found):
        found[r.name][f"{r.implementation}: {r.metric} ({r.unit})"][r.shape.length] = r
    made = []
    for name, rows in ((name, rows) for name, rows in found.items() if rows):
        contexts = sorted({length for row in rows.values() for length in row})
        cells = [[Cell(label), *(cell_of(row.get(length)) for length in contexts)] for label, row in rows.items()]
        made.append(Table(ROWS[name], ["", *map(tokens, contexts)], cells))
    return made


def cell_of(record: Record | None) -> Cell:
    """A number with its target, and whether it falls short."""
    if record is None:
        return Cell("")
    goal = f" ({'' if record.reached else 'short of '}{record.target})" if record.target else ""
    return Cell(short(record.value) + goal)


def draw(records: Iterable[Record], file: Path) -> bool:
    """Time per token over the context; False, and no file, if there is nothing to draw."""
    from zoo.plotting import legend_below, palette, panels, save_figure, token_axis

    curves: dict[str, dict[str, dict[int, float]]] = {name: defaultdict(dict) for name in ROWS}
    for r in (r for r in records if r.metric == "per token" and r.name in curves):
        curves[r.name][r.implementation][r.shape.length] = r.value
    drawn = [name for name in ROWS if curves[name]]
    if not drawn:
        return False
    colors = palette(list(dict.fromkeys(who for name in drawn for who in curves[name])))
    figure, axes = panels(len(drawn), size=(4.8 * len(drawn), 4.8))
    keys: dict[str, Any] = {}
    for name, axis in zip(drawn, axes[0]):
        for who, times in curves[name].items():
            (keys[who],) = axis.plot(*zip(*sorted(times.items())), marker="o", label=who, color=colors[who])
        axis.set(yscale="log", title=ROWS[name], xlabel="context (tokens)", ylabel="time per token (µs)")
        token_axis(axis, sorted({length for times in curves[name].values() for length in times}))
        axis.yaxis.set_major_formatter("{x:g}")
    legend_below(figure, [(line, who) for who, line in keys.items()], columns=3, width=120)
    save_figure(file, figure)
    return True


def main(arguments: list[str]) -> None:
    """Measure, and write what was asked for."""
    options, given = parse(arguments, __doc__ or "")
    records = [r for found in run(options).found.values() for r in found.records]
    if given.plot and draw(records, Path(given.plot)):
        print(f"plot: {given.plot}")
    if given.table:
        before, behind = parts_of(Path(given.table))
        replace_text(Path(given.table), f"{before}\n\n{titled_markdown(tables(records))}\n{behind}")
        print(f"tables: {given.table}")


if __name__ == "__main__":
    with friendly_errors():
        main(sys.argv[1:])
