"""Speed and correctness of the kernels, in turn beside PyTorch and other libraries, in one process.

    python scripts/bench_kernels.py device=cpu [piece=linear,sparse,decode] [out=FILE.json] [plot=FILE.png] [quick=true]
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
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from zoo.cli import answer_ctrl_c, choose_device, friendly_errors

if __name__ == "__main__":
    answer_ctrl_c()

from annotated_types import Ge, Lt

from zoo.schema.arguments import Arguments, read_arguments
from zoo.schema.base import Count, Flag, option
from zoo_kernels.bench.bench import Options
from zoo_kernels.bench.record import BOTH, Record
from zoo_kernels.bench.registry import FIRST, chosen_pieces, names_of
from zoo_kernels.bench.run import run

RESULTS = ROOT / "runs" / "kernels.json"  # where a GPU's results are if nothing else is said
MINUTES, FIRST_MINUTES = 8.0, 4.6
Amount = Annotated[float, Ge(0), Lt(1e6)]
PANELS = {
    "lightning": ("forward + backward", {"ours": "lightning", "sdpa": "softmax (PyTorch SDPA)"}),
    "decode": ("decoding", {"lightning": "lightning", "softmax": "softmax", "sdpa": "softmax (PyTorch SDPA)"}),
}
COLORS = {"lightning": "#d95f02", "softmax": "#1b6ca8", "softmax (PyTorch SDPA)": "#7a7a7a"}


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
    quick: Flag = option("fewer shapes of the CPU tables", default=False)
    dry: Flag = option("the GPU's pieces on the CPU with tiny shapes, to try the path", default=False)
    threads: Count = option("of PyTorch; 0: as many as it takes", default=0)
    minutes: Amount = option(
        f"that a piece may take on a GPU, {FIRST} in all; on the CPU no row begins when they are over. "
        f"0: {MINUTES:g}, {FIRST_MINUTES:g} of {FIRST}",
        default=0.0,
    )
    only: str = option("keep rows whose name holds this text; empty: all", default="")


def parse(arguments: list[str], usage: str = "") -> Options:
    """Options from KEY=VALUE arguments; ``--help`` prints ``usage`` and all options.

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
    if suite == "cuda" and (given.quick or given.plot):
        raise ValueError("quick and plot belong to the CPU tables; on CUDA choose by piece=, only= and minutes=.")
    pieces = chosen_pieces(given.piece, suite)
    return Options(
        device=device,
        suite=suite,
        scale="dry" if given.dry else "quick" if given.quick else "full",
        pieces=pieces,
        out=Path(given.out) if given.out else RESULTS if device.type == "cuda" else None,
        plot=Path(given.plot) if given.plot else None,
        threads=given.threads,
        minutes=given.minutes or (FIRST_MINUTES if pieces == (FIRST,) else MINUTES),
        only=given.only,
    )


def draw(records: Iterable[Record], file: Path) -> bool:
    """Time per token over the context, training and decoding; False, and no file, if there is nothing to draw."""
    from zoo.plotting import panels, save_figure

    found = [r for r in records if r.metric == "per token" and (r.name != "lightning" or r.direction == BOTH)]
    names = [name for name in PANELS if any(r.name == name for r in found)]
    if not names:
        return False
    figure, axes = panels(len(names), size=(5.6 * len(names), 4.2))
    for name, axis in zip(names, axes[0]):
        title, labels = PANELS[name]
        for who, label in labels.items():
            points = sorted((r.shape["T"], r.value) for r in found if r.name == name and r.implementation == who)
            axis.plot(*zip(*points or [((), ())]), marker="o", label=label, color=COLORS[label])
        lengths = sorted({r.shape["T"] for r in found if r.name == name})
        axis.set(xscale="log", yscale="log", title=title, xlabel="context (tokens)", ylabel="time per token (µs)")
        axis.set_xticks(lengths, [f"{length / 1024:g}k" for length in lengths])
        axis.minorticks_off()
        axis.legend()
    save_figure(file, figure)
    return True


if __name__ == "__main__":
    with friendly_errors():
        run(parse(sys.argv[1:], __doc__ or ""), draw)
