"""Writer of a sweep's report."""

from __future__ import annotations

from pathlib import Path

from zoo.files import replace_text
from zoo.sweeps.page.analysis import analyze
from zoo.sweeps.page.csv_files import arms_csv, measures_csv, speed_csv
from zoo.sweeps.page.figures import draw_all
from zoo.sweeps.page.pages import html_page, markdown_page, report_tables
from zoo.sweeps.page.read import read_sweep
from zoo.sweeps.page.stored import FILE, SPEED_FILE, read_report, report_json

FOLDER = "report"


def write_report(sweep: str | Path, out: str | Path | None = None) -> list[Path]:
    """Writes the report of a sweep: HTML, Markdown, report.json, CSV files, a .tex of each table, and plots.

    The same results give the same bytes, except for measured times: files with ``speed`` in their names, and the parts
    that :func:`zoo.sweeps.page.pages.without_measured` removes from the pages. Plots have the formats of
    :func:`zoo.plotting.picture_formats`.

    Args:
        sweep: folder of a sweep, finished or not; or of a report, which is drawn again from its report.json.
        out: folder to write to; None for ``report`` in the sweep's, or for the report's own.

    Returns:
        The files.

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
        **{f"{table.name}.tex": table.to_latex() for table in report_tables(analysis)},
    }
    for name, text in texts.items():
        replace_text(folder / name, text)
    return [*(folder / name for name in texts), *(file for picture in pictures for file in picture.files)]
