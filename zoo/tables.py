"""Tables that can be written as Markdown, HTML and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from zoo.files import replace_text

LONG = 60  # characters above which a cell is wrapped
NUMBER = re.compile(r"[-+]?\d[\d,.]*(?!\w)")
TEX = str.maketrans(
    {character: f"\\{character}" for character in "{}&%$#_"}
    | {character: f"{{{character}}}" for character in "[]*"}  # after the end of a row they would be an argument
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
)
HTML = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<div class="scroll" role="region" aria-label="{{ table.title }}" tabindex="0"><table><thead><tr>
{% for name in table.head %}
<th scope="col">{{ name }}</th>
{% endfor %}
</tr></thead><tbody>
{% for row in table.rows %}
<tr>
{% for cell in row %}
{% if loop.first %}
<th scope="row">
{%- else %}
<td{% if cell.long %} class="long"{% endif %} data-of="{{ table.head[loop.index0] }}">
{%- endif %}
{% if cell.strip %}
<div class="strip" role="img" aria-label="{{ cell.text }}">
{%- for name in cell.strip %}<i style="background:{{ colors[name] }}" title="{{ name }}"></i>{% endfor %}</div>
{%- endif %}
{% if cell.code %}<code>{{ cell.text }}</code>{% else %}{{ cell.text | replace("+", "+<wbr>" | safe) }}{% endif %}
{% if cell.small %}<span class="small">{{ cell.small }}</span>{% endif %}
{% if cell.verdict %}
<span class="verdict {{ cell.verdict }}">{{ cell.judgment }}</span><span class="small">{{ cell.reason }}</span>
{%- endif %}
{% if loop.first %}</th>{% else %}</td>{% endif %}

{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
""")


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: the text.
        small: small text below it, such as an interval.
        verdict: verdict on a difference, such as ``worse``; empty where nothing is compared.
        difference: the difference that the verdict is about.
        reason: evidence of the verdict, such as the interval of the difference.
        strip: names that HTML draws as a strip of colors.
        code: whether the text is code.
    """

    text: str
    small: str = ""
    verdict: str = ""
    difference: str = ""
    reason: str = ""
    strip: tuple[str, ...] = ()
    code: bool = False

    @property
    def judgment(self) -> str:
        """The verdict with the difference."""
        return f"{self.verdict}, {self.difference}" if self.difference else self.verdict

    @property
    def long(self) -> bool:
        """Whether the text is to be wrapped."""
        return len(self.text) > LONG


@dataclass(frozen=True)
class Table:
    """A titled table whose first column names the row.

    Attributes:
        title: title of the table.
        head: names of the columns.
        rows: cells of each row, one for each column.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def name(self) -> str:
        """The title as part of the name of a file."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, which are aligned at the right."""
        columns = [[row[number] for row in self.rows] for number in range(len(self.head))]
        return [_is_numeric([cell.text for cell in column if cell.text not in ("", "-")]) for column in columns]

    def to_markdown(self) -> str:
        """Returns the rows as a table of GitHub's Markdown, without the title."""
        rule = "|".join("---:" if numeric else "---" for numeric in self.numeric)
        rows = [[_markdown_cell(cell) for cell in row] for row in self.rows]
        lines = [f"| {' | '.join(row)} |" for row in ([markdown_text(name) for name in self.head], *rows)]
        return "\n".join([lines[0], f"|{rule}|", *lines[1:]])

    def to_html(self, colors: Mapping[str, str] | None = None) -> Markup:
        """Returns the rows as HTML in a box that scrolls by itself, without the title.

        Args:
            colors: color of each name in strips.
        """
        return Markup(HTML.render(table=self, colors=colors or {}))

    def to_latex(self) -> str:
        """Returns a floating table for LaTeX, with its title as caption and ``tab:NAME`` as label.

        It needs the package booktabs.
        """
        rows = [" & ".join(map(_latex_cell, row)) for row in self.rows]
        kinds = ["r" if numeric else self._left(number) for number, numeric in enumerate(self.numeric)]
        body = [r"\toprule", rf"{' & '.join(map(latex_text, self.head))} \\", r"\midrule"]
        body += [rf"{row} \\" for row in rows]
        inner = [rf"\begin{{tabular}}{{{''.join(kinds)}}}", *(f"  {line}" for line in body), r"  \bottomrule"]
        outer = [rf"\caption{{{latex_text(self.title)}}}", rf"\label{{tab:{self.name}}}", r"\centering", *inner]
        outer += [r"\end{tabular}"]
        first = "% \\usepackage{booktabs}\n\\begin{table}\n"
        return first + "".join(f"  {line}\n" for line in outer) + "\\end{table}\n"

    def _left(self, column: int) -> str:
        return r"p{0.5\linewidth}" if any(row[column].long for row in self.rows) else "l"


def _is_numeric(texts: Sequence[str]) -> bool:
    return bool(texts) and all(NUMBER.match(text) for text in texts)


def markdown_text(text: str, special: str = r"|<>\`*_[]") -> str:
    """Escapes text of one line for Markdown."""
    return re.sub(rf"([{re.escape(special)}])", r"\\\1", " ".join(text.split()))


def _markdown_cell(cell: Cell) -> str:
    code = cell.code and "`" not in cell.text
    parts = [f"({cell.small})" if cell.small else "", f"**{cell.judgment}**" if cell.verdict else ""]
    parts += [f"({cell.reason})" if cell.reason else ""]
    text = f"`{markdown_text(cell.text, '|')}`" if code else markdown_text(cell.text)
    return " ".join([text, *(markdown_text(part, "|<>") for part in parts if part)])


def latex_text(text: str) -> str:
    """Escapes text of one line for LaTeX, with minus signs in front of numbers and a dash for nothing."""
    if text == "-":
        return "--"
    return re.sub(r"(?<![\w.)}-])-(?=[\d.])", "$-$", " ".join(text.split()).translate(TEX))


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    lines = [rf"\texttt{{{text}}}" if cell.code else text]
    lines += [rf"\textbf{{{latex_text(cell.judgment)}}}"] if cell.verdict else []
    lines[1:1] = [rf"\footnotesize {latex_text(cell.small)}"] if cell.small else []
    lines += [rf"\footnotesize {latex_text(cell.reason)}"] if cell.reason else []
    if len(lines) == 1:
        return lines[0]
    side = "r" if NUMBER.match(cell.text) else "l"
    inner = r" \\ ".join(lines)
    return rf"\begin{{tabular}}[t]{{@{{}}{side}@{{}}}}{inner}\end{{tabular}}"


def titled_markdown(tables: Sequence[Table]) -> str:
    """Returns tables in Markdown, each below its title."""
    return "\n".join(f"### {markdown_text(table.title)}\n\n{table.to_markdown()}\n" for table in tables)


def write_tables(file: Path, tables: Sequence[Table], markdown: str) -> list[Path]:
    """Writes a page of tables in Markdown, and beside it the tables in LaTeX.

    Args:
        file: file of the Markdown, with a ``.tex`` file beside it; a file that itself ends in ``.tex`` gets LaTeX
            alone.
        tables: tables that are written as LaTeX.
        markdown: the page that shows them.

    Returns:
        The files.
    """
    latex = file.with_suffix(".tex")
    replace_text(latex, "\n".join(table.to_latex() for table in tables))
    if latex == file:
        return [latex]
    replace_text(file, markdown)
    return [file, latex]
