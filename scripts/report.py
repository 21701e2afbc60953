"""One page of evidence from a sweep: tables, curves, Pareto fronts and verdicts, as HTML, Markdown and CSV.

    python scripts/report.py SWEEP_DIR [out=FOLDER]

SWEEP_DIR is what `python train.py -m sweep=NAME` wrote; it may still be running. Files go to SWEEP_DIR/report, or to
FOLDER. report.html holds everything and opens from disk; the pictures are for report.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo.ablation.report.write import write_report
from zoo.cli import friendly_errors
from zoo.config import ConfigError, take_text


def main() -> None:
    """Read the sweep, write the report, say where it is."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    out, folders = take_text(sys.argv[1:], "out")
    if len(folders) != 1:
        raise ConfigError(f"{len(folders)} folders given: expected one SWEEP_DIR, and out=FOLDER if wanted.")
    for file in write_report(folders[0], out or None):
        print(file)


if __name__ == "__main__":
    with friendly_errors():
        main()
