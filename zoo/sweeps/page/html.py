"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from zoo.sweeps.page.analysis import CACHE, FLOPS, SPEED, Analysis, findings, interval_notes
from zoo.sweeps.page.arm_tables import (
    Cell,
    Table,
    arms_table,
    commands,
    detail_tables,
    environment_table,
    failure_table,
    front_table,
    group_tables,
    headline_table,
    speed_table,
)
from zoo.sweeps.page.canvas import layer_colors
from zoo.sweeps.page.figures import Picture
from zoo.sweeps.page.style import STYLE
from zoo.sweeps.page.summary import BETTER, WORSE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"  # a browser would refuse to load anything
MEASURED = "<!-- measured -->", "<!-- /measured -->"  # around what the clock decides, in HTML and in Markdown


def html_page(analysis: Analysis, pictures: Sequence[Picture]) -> str:
    """The whole page; the same analysis gives the same text."""
    sweep = analysis.sweep
    title = escape(f"Sweep {sweep.name}")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>',
            f"<h1>{title}</h1>",
            *_top(analysis),
            *_body(analysis, pictures),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _top(analysis: Analysis) -> Iterator[str]:
    sweep = analysis.sweep
    if sweep.question:
        yield f"<p><b>{escape(sweep.question)}</b></p>"
    state = "" if analysis.complete and not analysis.failures else " open"
    yield f'<p class="progress{state}">{escape(analysis.progress)}</p>'
    facts = [f"Axis: {sweep.axis}."] if sweep.axis else []
    facts += [f"Reference: {sweep.reference}."]
    facts += [f"Arms are matched in {sweep.match}."] if sweep.match else []
    yield f'<p class="soft">{escape(" ".join(facts))}</p>'
    if lines := findings(analysis):
        yield _section("What it says", _list(lines))


def _body(analysis: Analysis, pictures: Sequence[Picture]) -> Iterator[str]:
    yield _section("Arms", _table(arms_table(analysis), layer_colors(analysis)) + _key(layer_colors(analysis)))
    if analysis.failures:
        yield _section("Failed runs", _table(failure_table(analysis)))
    if analysis.notes:
        yield _section("What is missing", _list(analysis.notes))
    for table in (headline_table(analysis), *group_tables(analysis)):
        if table.rows:
            yield _section(table.title, _table(table))
    yield _section("How to read the numbers", _list(interval_notes(analysis)))
    shown = [p for p in pictures if not p.measured and p.name != "schedules"]
    for title, prefix in (("Loss", "loss"), ("Quality by arm", "share"), ("Quality against cost", "pareto")):
        figures = _figures(p for p in shown if p.name.startswith(prefix))
        fronts = front_table(analysis, "Pareto fronts", (CACHE, FLOPS)) if prefix == "pareto" else None
        if figures:
            yield _section(title, figures + (_table(fronts) if fronts and fronts.rows else ""))
    details = "".join(_details(table) for table in detail_tables(analysis))
    if details:
        yield _section("All numbers", details)
    yield _measured(analysis, pictures)
    shell = "\n".join(f"<code>{escape(command)}</code>" for command in commands(analysis))
    yield _section("To do it again", f"<pre>{shell}</pre>" + _table(environment_table(analysis)))


def _measured(analysis: Analysis, pictures: Iterable[Picture]) -> str:
    table = speed_table(analysis)
    if not table.rows:
        return ""
    text = '<p class="soft">Measured during training, on whatever else the machine did: another run gives others.</p>'
    fronts = front_table(analysis, "Pareto fronts with speed", (SPEED,))
    parts = [text, _table(table), _figures(p for p in pictures if p.measured), _table(fronts) if fronts.rows else ""]
    return MEASURED[0] + _section("Speed", "".join(parts)) + MEASURED[1]


def without_measured(text: str) -> str:
    """A page, HTML or Markdown, without the parts that the clock decides: what is left depends on the results alone."""
    begin, end = MEASURED
    first, *rest = text.split(begin)
    return first + "".join(part.partition(end)[2] for part in rest)


def _section(title: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _details(table: Table) -> str:
    return f"<details><summary>{escape(table.title)}: {len(table.rows)} numbers</summary>{_table(table)}</details>"


def _table(table: Table, colors: dict[str, str] | None = None) -> str:
    """A table in a box that scrolls by itself; on a narrow screen its cells stand below each other with their heads."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.head)
    rows = []
    for first, *cells in table.rows:
        names = (f' data-of="{escape(text, quote=True)}"' for text in table.head[1:])
        body = "".join(f"<td{_long(c)}{name}>{_cell(c, colors or {})}</td>" for c, name in zip(cells, names))
        rows.append(f'<tr><th scope="row">{_cell(first, {})}</th>{body}</tr>')
    label = escape(table.title, quote=True)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _long(cell: Cell) -> str:
    return ' class="long"' if len(cell.text) > 60 else ""


def _cell(cell: Cell, colors: dict[str, str]) -> str:
    strip = "".join(f'<i style="background:{colors[n]}" title="{escape(n)}"></i>' for n in cell.layers if n in colors)
    parts = [f'<div class="strip" role="img" aria-label="{escape(cell.text)}">{strip}</div>' if strip else ""]
    text = escape(cell.text)
    parts.append(text.replace("+", "+<wbr>") if strip else text)
    parts.append(f'<span class="small">{escape(cell.small)}</span>' if cell.small else "")
    if cell.verdict:
        kind = next((kind for kind in (BETTER, WORSE) if cell.verdict.startswith(kind)), "open")
        parts.append(f'<span class="verdict {kind}">{escape(cell.verdict)}</span>')
        parts.append(f'<span class="small">{escape(cell.reason)}</span>')
    return "".join(parts)


def _key(colors: dict[str, str]) -> str:
    keys = (f'<span><i style="background:{color}"></i>{escape(name)}</span>' for name, color in colors.items())
    return f'<div class="key">{"".join(keys)}</div>' if colors else ""


def _figures(pictures: Iterable[Picture]) -> str:
    drawn = "".join(f"<figure>{p.svg}<figcaption>{escape(p.caption)}</figcaption></figure>\n" for p in pictures)
    return f'<div class="figures">\n{drawn}</div>' if drawn else ""
