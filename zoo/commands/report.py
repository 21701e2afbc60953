"""One page of evidence from a sweep: tables, curves, Pareto fronts and verdicts, as HTML, Markdown, LaTeX and CSV.

    python scripts/report.py SWEEP_DIR [OPTION=VALUE ...]

SWEEP_DIR is what `python train.py -m sweep=NAME` wrote; it may still be running. report.html holds everything and opens
from disk. For papers there is a .tex of each table, and formats=[png,pdf] writes the pictures as PDF too. The folder of
a report is drawn again from its report.json, without the runs.
"""

from __future__ import annotations

from zoo.config import ConfigError
from zoo.plotting import picture_formats
from zoo.schema.arguments import Arguments, OutputFolder, read_arguments
from zoo.schema.base import FORMATS, PictureFormats, option
from zoo.sweeps.page.write import write_report


class Options(Arguments):
    """Options of the report."""

    out: OutputFolder | None = option(
        "folder of the page, the tables and the pictures; empty: SWEEP_DIR/report", default=None
    )
    formats: PictureFormats = option(FORMATS, default=["png"], min_length=1)


def main(arguments: list[str]) -> None:
    """Reads the sweep, writes the report, and prints where it is."""
    chosen, folders = read_arguments(Options, arguments, __doc__, rest="SWEEP_DIR")
    if len(folders) != 1:
        raise ConfigError(f"{len(folders)} folders given: expected one SWEEP_DIR, and out=FOLDER if wanted.")
    with picture_formats(chosen.formats):
        print(*write_report(folders[0], chosen.out), sep="\n")
