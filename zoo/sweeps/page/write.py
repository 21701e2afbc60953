"""From a sweep's folder to the files of its report."""

from __future__ import annotations

from pathlib import Path

from zoo.files import replace_text
from zoo.sweeps.page.analysis import analyze
from zoo.sweeps.page.figures import draw_all
from zoo.sweeps.page.html import html_page
from zoo.sweeps.page.read import read_sweep
from zoo.sweeps.page.stored import FILE, SPEED_FILE, read_report, report_json
from zoo.sweeps.page.text import arms_csv, markdown_page, measures_csv, speed_csv

FOLDER = "report"


def write_report(sweep: str | Path, out: str | Path | None = None) -> list[Path]:
    """Write report.html, report.md, report.json, arms.csv, measures.csv, speed.csv and pictures; returns the files.

    The same results give the same bytes, but for what is measured by the clock: speed.csv, the pictures whose names end
    in ``speed``, and the parts that :func:`zoo.sweeps.page.html.without_measured` takes out of the pages.

    Args:
        sweep: folder of a sweep, finished or not; or of a report, which is drawn again from its report.json.
        out: folder to write to; None for ``report`` in the sweep's, or for the report's own.

    Raises:
        ConfigError: if ``sweep`` is not the folder of a sweep or of a report.
    """
    again = not (Path(sweep) / "sweep.json").exists() and (Path(sweep) / FILE).exists()
    analysis = read_report(sweep) if again else analyze(read_sweep(sweep))
    folder = Path(out) if out is not None else Path(sweep) if again else Path(sweep) / FOLDER
    pictures = draw_all(analysis, folder)
    texts = {
        "report.html": html_page(analysis, pictures),
        "report.md": markdown_page(analysis, pictures),
        FILE: report_json(analysis),
        "arms.csv": arms_csv(analysis),
        "measures.csv": measures_csv(analysis),
        SPEED_FILE: speed_csv(analysis),
    }
    for name, text in texts.items():
        replace_text(folder / name, text)
    return [*(folder / name for name in texts), *(folder / f"{picture.name}.png" for picture in pictures)]
