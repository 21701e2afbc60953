"""Tables in Markdown, HTML and LaTeX: the same cells, escaped, numbers aligned."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from zoo.tables import Cell, Table, titled_markdown, write_tables

NASTY = r"50% & #1_a {x} \frac$ ~^ <b>|*[`"
TABLE = Table(
    "Loss & recall",
    ["arm", "value", "note_1"],
    [
        [Cell("softmax", code=True), Cell("1.25", "1.0 to -0.5", "worse", "-0.708", "-0.846 to -0.481"), Cell(NASTY)],
        [Cell("a+b", strip=("lightning", "softmax")), Cell("-12,345"), Cell("-")],
        [Cell("[c]"), Cell("-"), Cell("word " * 20)],
    ],
)


class Cells(HTMLParser):
    """Text of the cells, row by row."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if data.strip() and self.rows:
            self.rows[-1][-1] += f"{data.strip()} "


def compile_latex(folder, table):
    """Fails where LaTeX finds an error in a paper with the table."""
    paper = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n" + table + "\\end{document}\n"
    (folder / "paper.tex").write_text(paper)
    command = ["pdflatex", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_markdown_has_a_line_a_row_and_shows_every_character_as_it_is():
    head, rule, first, second, third = TABLE.to_markdown().splitlines()
    assert head == r"| arm | value | note\_1 |" and rule == "|---|---:|---|"
    assert first.startswith("| `softmax` | 1.25 (1.0 to -0.5) **worse, -0.708** (-0.846 to -0.481) | ")
    assert r"50% & #1\_a {x} \\frac$ ~^ \<b\>\|\*\[\`" in first
    assert second == "| a+b | -12,345 | - |" and third.startswith(r"| \[c\] | - | word word")
    assert titled_markdown([TABLE]).startswith("### Loss & recall\n\n| arm")


def test_html_has_the_cells_and_no_markup_of_their_own():
    page = Cells(TABLE.to_html({"lightning": "#08519c", "softmax": "#d94801"}))
    assert page.rows[0] == ["arm ", "value ", "note_1 "]
    assert page.rows[1] == ["softmax ", "1.25 1.0 to -0.5 worse, -0.708 -0.846 to -0.481 ", f"{NASTY} "]
    assert "b" not in [tag for tag, _ in page.tags] and "code" in [tag for tag, _ in page.tags]
    strip = [attributes for tag, attributes in page.tags if tag == "i"]
    assert strip == [
        {"style": "background:#08519c", "title": "lightning"},
        {"style": "background:#d94801", "title": "softmax"},
    ]
    assert "verdict worse" in [attributes.get("class") for _, attributes in page.tags]
    assert [attributes["data-of"] for tag, attributes in page.tags if tag == "td"] == ["value", "note_1"] * 3


def test_latex_is_booktabs_with_as_many_columns_in_every_row(tmp_path):
    text = TABLE.to_latex()
    assert r"\caption{Loss \& recall}" in text and r"\label{tab:loss-recall}" in text
    assert r"\begin{tabular}{lrp{0.5\linewidth}}" in text, "numbers at the right, long text wrapped"
    inside = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    rows = [row for row in inside.splitlines() if row.strip()]
    assert len(rows) == 3 and all(row.endswith(r" \\") for row in rows)
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [2, 2, 2]
    assert r"\texttt{softmax}" in rows[0] and r"\textbf{worse, $-$0.708}" in rows[0]
    assert r"{@{}r@{}}1.25 \\ \footnotesize 1.0 to $-$0.5 \\" in rows[0]
    assert rows[1].split(" & ")[1:] == ["$-$12,345", r"-- \\"]
    assert rows[2].strip().startswith("{[}c{]}"), "a bracket after the end of a row would be its argument"
    assert text.endswith("\\bottomrule\n  \\end{tabular}\n\\end{table}\n")
    if shutil.which("pdflatex"):
        compile_latex(tmp_path, text)


def test_latex_has_every_special_character_escaped():
    row = TABLE.to_latex().split(r"\midrule")[1].splitlines()[1]
    want = r"50\% \& \#1\_a \{x\} \textbackslash{}frac\$ \textasciitilde{}\textasciicircum{} "
    assert want + r"\textless{}b\textgreater{}\textbar{}{*}{[}`" in row
    bare = re.sub(r"\\[\\{}&%$#_]", "", TABLE.to_latex())
    assert bare.count("{") == bare.count("}")


@pytest.mark.parametrize(
    ("texts", "numeric"),
    [
        (["1", "-", "+0.5"], True),
        (["1,234 (1 to 2)", "3 of 9", "4 KiB", "25%"], True),
        (["3xlightning+softmax", "7xlightning"], False),
        (["-", ""], False),
        (["1", "none"], False),
        ([], False),
    ],
)
def test_columns_of_numbers_are_told_by_their_cells(texts, numeric):
    assert Table("t", ["a"], [[Cell(text)] for text in texts]).numeric == [numeric]


def test_tables_are_written_beside_each_other(tmp_path):
    assert write_tables(tmp_path / "a.md", [TABLE, TABLE], "page\n") == [tmp_path / "a.md", tmp_path / "a.tex"]
    assert (tmp_path / "a.md").read_text() == "page\n"
    assert (tmp_path / "a.tex").read_text() == f"{TABLE.to_latex()}\n{TABLE.to_latex()}"
    assert write_tables(tmp_path / "b.tex", [TABLE], "page\n") == [tmp_path / "b.tex"]
    assert (tmp_path / "b.tex").read_text() == TABLE.to_latex()
