"""Plots: one style, one palette, labels and legends that hide nothing, and files in every requested format."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import scipy
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zoo.files import replace_file

BLUE, ORANGE = "#08519c", "#d94801"  # what is drawn of one run, and what is held out of it
PALETTE = (  # all dark enough for text
    *(BLUE, ORANGE, "#238b45", "#6a51a3", "#cb181d", "#00838f", "#8c6d31", "#525252"),
    *("#e7298a", "#5c9619", "#3690c0", "#b8860b", "#980043", "#1b9e77", "#a35ad6", "#b15928"),
)
LINES = ("-", "--", ":")  # of further names, once every color is taken
INK = "#1f2328"
FEW = 8  # values, none of which is left out
STYLE: Any = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.titlesize": 11,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # text stays text, for journals and for editors of pictures
    "svg.fonttype": "none",
    "svg.hashsalt": "zoo",  # the same picture is the same bytes
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
}
METADATA: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
styled = matplotlib.rc_context(STYLE)  # decorates what draws
_formats: ContextVar[tuple[str, ...]] = ContextVar("formats", default=("png",))


@contextmanager
def picture_formats(formats: Sequence[str]) -> Iterator[None]:
    """Context manager that saves plots in these formats, ``png``, ``svg`` or ``pdf``, instead of PNG."""
    token = _formats.set(tuple(dict.fromkeys(formats)))
    try:
        yield
    finally:
        _formats.reset(token)


def shown_format() -> str:
    """Returns the format of the plots that a Markdown page shows: the first that is written."""
    return _formats.get()[0]


@styled
def panels(columns: int = 1, rows: int = 1, size: tuple[float, float] = (7.0, 4.2), **options: Any) -> Any:
    """Returns a figure of ``size`` inches and its axes ``(rows, columns)``, as an array."""
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save_figure(file: Path, figure: Figure, dpi: int = 150, colors: int = 128) -> list[Path]:
    """Writes a figure atomically in every format of :func:`picture_formats`.

    Args:
        file: its ending is replaced by that of each format.
        figure: the figure.
        dpi: dots per inch of a PNG.
        colors: number of colors of a PNG; a palette in place of full color makes the file a third of the size.

    Returns:
        The files.
    """

    @styled
    def write(kind: str, unfinished: Path) -> None:
        figure.savefig(unfinished, format=kind, dpi=dpi, metadata=METADATA[kind])
        figure.set_layout_engine("none")  # as it is now: laying out again takes a third of the time
        if kind == "png":
            _reduce(unfinished, colors)

    files = [file.with_suffix(f".{kind}") for kind in _formats.get()]
    for target, kind in zip(files, _formats.get()):
        replace_file(target, partial(write, kind))
    return files


def _reduce(file: Path, colors: int) -> None:
    from PIL import Image

    with Image.open(file) as image:
        small = image.convert("RGB").quantize(colors, dither=Image.Dither.NONE)
    small.save(file, format="png", optimize=True)


@styled
def svg_text(figure: Figure) -> str:
    """Returns a figure as an SVG document without a background."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=METADATA["svg"], transparent=True)
    return buffer.getvalue()


def palette(names: Sequence[str]) -> dict[str, str]:
    """Returns a color for each name, hexadecimal, dark enough for text."""
    return {name: PALETTE[number % len(PALETTE)] for number, name in enumerate(names)}


def line_style(number: int) -> dict[str, Any]:
    """Returns color and dashes of curve ``number``; the first 48 all differ."""
    return {"color": PALETTE[number % len(PALETTE)], "linestyle": LINES[number // len(PALETTE) % len(LINES)]}


def legend_below(figure: Figure, keys: Sequence[tuple[Any, str]], columns: int = 2, width: int = 72) -> None:
    """Adds a legend below the axes, where it hides nothing.

    Args:
        figure: figure with a constrained layout.
        keys: artists and their labels.
        columns: largest number of columns.
        width: characters of a line; longer labels are cut.
    """
    columns = max(1, min(columns, len(keys)))
    labels = [f"\u2009{label}" if label.startswith("_") else label for _, label in keys]  # else they would be left out
    figure.legend(
        [handle for handle, _ in keys],
        [shorten(label, width // columns) for label in labels],
        loc="outside lower center",
        ncols=columns,
    )


def shorten(label: str, limit: int) -> str:
    """Cuts a label to at most ``limit`` characters."""
    return label if len(label) <= limit else f"{label[: limit - 1]}…"


def tokens(value: float) -> str:
    """Formats a number of tokens as 512, 2k or 1M where that is exact."""
    for size, letter in ((2**20, "M"), (2**10, "k")):
        if value >= size and value % size == 0:
            return f"{value / size:g}{letter}"
    return f"{value:,.10g}"


def token_axis(axes: Axes, counts: Sequence[int]) -> None:
    """Makes the x axis logarithmic, with a tick at each count or, where they are many, at some of them."""
    shown = counts[:: len(counts) // -8]
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [tokens(count) for count in shown])
    axes.minorticks_off()
    if len(counts) == 1:
        axes.set_xlim(counts[0] / 4, counts[0] * 2)


def leave_out_the_fall(axes: Axes, values: Sequence[float] | np.ndarray, share: float) -> None:
    """Limits the y axis to the lower ``share`` of the values, since a steep fall would hide smaller differences."""
    if len(values) < FEW:
        return
    low, high = float(np.min(values)), float(np.quantile(values, share))
    margin = 0.08 * max(high - low, 0.01 * abs(high), 1e-6)
    axes.set_ylim(low - margin, high + margin)


def spread(centers: Sequence[float], heights: Sequence[float], low: float = 0.0, high: float = 1.0) -> list[float]:
    """Returns the positions nearest to ``centers`` (descending) at which labels of these heights do not overlap."""
    tall = np.asarray(heights, dtype=np.float64)
    below = np.concatenate([[0.0], np.cumsum((tall[:-1] + tall[1:]) / 2)])  # of each label under the first, touching
    raised = scipy.optimize.isotonic_regression(np.asarray(centers) + below, increasing=False).x
    bottom, top = low + tall[-1] / 2 + below[-1], high - tall[0] / 2
    return (np.clip(raised, min(bottom, top), top) - below).tolist()


def label_ends(axes: Axes, x: float, ends: Sequence[tuple[str, float, str]], line: float, room: float = 0.05) -> None:
    """Adds labels to the right of the axes, joined to the ends of their curves by thin lines.

    Args:
        axes: axes whose limits and scales are final.
        x: where the curves end.
        ends: text, height of the end and color of each curve, the highest first.
        line: height of a line of text, as a fraction of the axes.
        room: space for labels above and below the axes, as a fraction of them.
    """
    to_axes = axes.transScale + axes.transLimits
    centers = [float(to_axes.transform((x, y))[1]) for _, y, _ in ends]
    heights = [line * (text.count("\n") + 1.25) for text, _, _ in ends]
    for (text, y, color), place in zip(ends, spread(centers, heights, -room, 1 + room)):
        axes.annotate(
            text,
            (x, y),
            xytext=(1.06, place),
            textcoords="axes fraction",
            fontsize="small",
            color=color,
            va="center",
            linespacing=1.05,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0}
            | {"relpos": (0.0, 0.5)},
        )
