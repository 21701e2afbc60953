"""Pages of a report, from the folder templates: one self-contained HTML page, and Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from zoo.plotting import palette
from zoo.sweeps.page import arm_tables
from zoo.sweeps.page.analysis import CACHE, FLOPS, SPEED, Analysis, findings, interval_notes
from zoo.sweeps.page.figures import Picture
from zoo.tables import Table, markdown_text

GROUPS = (("Loss", "loss"), ("Quality by arm", "share"), ("Quality against cost", "pareto"))  # by beginnings of names
MEASURED = "<!-- measured -->", "<!-- /measured -->"  # around what the clock decides, in HTML and in Markdown
TEMPLATES = Environment(
    loader=PackageLoader("zoo.sweeps.page"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["plain"] = markdown_text


def html_page(analysis: Analysis, pictures: Sequence[Picture]) -> str:
    """Returns the HTML page; the same analysis gives the same text."""
    return TEMPLATES.get_template("report.html").render(_content(analysis, pictures))


def markdown_page(analysis: Analysis, pictures: Sequence[Picture]) -> str:
    """Returns the report in Markdown without the tables of all numbers; plots are files beside it."""
    return TEMPLATES.get_template("report.md").render(_content(analysis, pictures))


def report_tables(analysis: Analysis) -> list[Table]:
    """Returns every table of the Markdown page that has rows, those of measured speed last."""
    content = _content(analysis, [])
    names = ("arms", "failures", "fronts", "environment", "speed", "speed_fronts")
    return [table for table in (*content["tables"], *(content[name] for name in names)) if table.rows]


def _content(analysis: Analysis, pictures: Sequence[Picture]) -> dict[str, Any]:
    """What the templates show."""
    still = [picture for picture in pictures if not picture.measured]
    tables = [arm_tables.headline_table(analysis), *arm_tables.group_tables(analysis)]
    return {
        "sweep": analysis.sweep,
        "analysis": analysis,
        "findings": findings(analysis),
        "notes": interval_notes(analysis),
        "arms": arm_tables.arms_table(analysis),
        "colors": palette(analysis.layers),
        "failures": arm_tables.failure_table(analysis),
        "tables": [table for table in tables if table.rows],
        "details": arm_tables.detail_tables(analysis),
        "fronts": arm_tables.front_table(analysis, "Pareto fronts", (CACHE, FLOPS)),
        "speed": arm_tables.speed_table(analysis),
        "speed_fronts": arm_tables.front_table(analysis, "Pareto fronts with speed", (SPEED,)),
        "strips": [picture for picture in still if picture.name == "schedules"],
        "groups": [(title, [p for p in still if p.name.startswith(prefix)]) for title, prefix in GROUPS],
        "measured": MEASURED,
        "measured_pictures": [picture for picture in pictures if picture.measured],
        "commands": arm_tables.commands(analysis),
        "environment": arm_tables.environment_table(analysis),
    }


def without_measured(text: str) -> str:
    """Removes the parts with measured times from a page, HTML or Markdown.

    The remaining text depends on the results alone.
    """
    begin, end = MEASURED
    first, *rest = text.split(begin)
    return first + "".join(part.partition(end)[2] for part in rest)
