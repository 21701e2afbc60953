"""Pages, pictures and tables of a sweep's report: whole, escaped, the same each time, and fit for a phone."""

import base64
import csv
import json
import re
import runpy
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from tests.sweeps import sweep_folder
from tests.sweeps.sweep_folder import ARMS, write_sweep
from zoo.config import ConfigError
from zoo.plotting import palette, panels, picture_formats
from zoo.sweeps.page.analysis import analyze
from zoo.sweeps.page.arm_tables import front_table
from zoo.sweeps.page.csv_files import arms_csv, measures_csv
from zoo.sweeps.page.figures import draw_all
from zoo.sweeps.page.pages import html_page, markdown_page, without_measured
from zoo.sweeps.page.read import read_sweep
from zoo.sweeps.page.scatter import cache_axis
from zoo.sweeps.page.stored import read_report
from zoo.sweeps.page.write import write_report

VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ROOT = Path(__file__).resolve().parents[3]


class Page(HTMLParser):
    """Elements of a page; every one must be closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts, self.strips = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "i" and "strip" in self.open[-1][1].get("class", ""):
            self.strips[-1].append((attributes["title"], attributes["style"].removeprefix("background:")))
        if attributes.get("class") == "strip":
            self.strips.append([])
        if tag not in VOID:
            self.open.append((tag, attributes))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        self.texts.append(data)


def pictures_of(page):
    """The SVG documents in a page."""
    found = [attributes["src"].partition(";base64,") for tag, attributes in page.tags if tag == "img"]
    assert {kind for kind, _, _ in found} == {"data:image/svg+xml"}
    return [Page(base64.b64decode(content).decode()) for _, _, content in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sweep with its report."""
    folder = write_sweep(tmp_path_factory.mktemp("sweep"))
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    """The page."""
    return (folder / "report" / "report.html").read_text()


def test_the_page_needs_nothing_but_itself(text):
    page = Page(text)
    names = [tag for tag, _ in page.tags]
    assert names.count("img") == 10 == names.count("figure")
    assert not {"script", "iframe", "object", "svg"} & set(names)
    for tag, attributes in page.tags:
        assert not {"srcset", "data", "action"} & attributes.keys(), tag
        assert attributes.get("src", "data:").startswith("data:"), tag
        assert attributes.get("href", "#").startswith(("#", "data:,")), tag
    assert "http:" not in text and "https:" not in text and "@import" not in text


def test_every_picture_is_whole_and_has_its_caption_for_those_who_cannot_see_it(text):
    page = Page(text)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert all("training tokens" in part.texts for part in pictures_of(page)[:2])
    assert len({attributes["src"] for attributes in images}) == len(images)
    assert all(attributes["alt"] in page.texts for attributes in images)


def test_layers_are_drawn_as_strips_in_the_colors_of_the_key(folder, text):
    colors = palette(analyze(read_sweep(folder)).layers)
    assert len(set(colors.values())) == len(colors) == 2
    assert Page(text).strips == [[(layer, colors[layer]) for layer in layers] for layers in ARMS.values()]


def test_every_file_is_there_and_markdown_shows_every_picture(folder):
    report = folder / "report"
    page = (report / "report.md").read_text()
    shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", page)
    assert sorted(shown) == sorted(file.name for file in report.glob("*.png")) and len(shown) == 11
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({re.sub(r"\\\|", "", line).count("|") for line in block.splitlines()}) == 1
    assert "**worse, -0.708** (-0.846 to -0.481)" in page


def test_csv_has_the_numbers(folder):
    analysis = analyze(read_sweep(folder))
    rows = {row["arm"]: row for row in csv.DictReader((folder / "report" / "arms.csv").open())}
    assert list(rows) == list(ARMS)
    row, label = rows["hybrid"], analysis.measures.recall.label
    assert row["layers"] == "lightning+lightning+lightning+softmax" and row["softmax_share"] == "0.25"
    assert float(row[f"{label}: mean"]) == pytest.approx(0.6875)
    assert float(row[f"{label}: difference"]) == pytest.approx(-5 / 24)
    assert row[f"{label}: verdict"] == "worse" and rows["exact"][f"{label}: verdict"] == ""
    every = list(csv.DictReader((folder / "report" / "measures.csv").open()))
    assert len(every) == 3 * len(analysis.measures.all)
    value = next(r for r in every if (r["arm"], r["length"], r["metric"]) == ("exact", "128", "answer_nll"))
    assert float(value["mean"]) == pytest.approx(2.0)


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes_but_for_the_clock(folder, tmp_path, monkeypatch):
    """The second sweep is elsewhere, was stopped once, and ran at another speed."""
    again = write_sweep(tmp_path / "elsewhere", seeds=(0,))
    monkeypatch.setattr(sweep_folder, "RATES", dict.fromkeys(ARMS, 76_543.0))
    write_sweep(again)
    environment = again / "arms/linear/seed-0/environment.json"
    environment.write_text(json.dumps(json.loads(environment.read_text()) | {"time": "later", "command": ["resume=x"]}))
    write_report(again)
    different = set()
    for file in sorted((folder / "report").iterdir()):
        first, second = file.read_bytes(), (again / "report" / file.name).read_bytes()
        if file.suffix in (".html", ".md"):
            assert first != second
            first, second = (without_measured(content.decode()) for content in (first, second))
        different |= {file.name} if first != second else set()
    measured = {file.name for file in (folder / "report").iterdir() if "speed" in file.name}
    assert different == measured - {"pareto-fronts-with-speed.tex"}, "who is on them has not changed"
    page = (again / "report" / "report.html").read_text()
    assert "76,548" in page and "76,548" not in without_measured(page)


@pytest.mark.slow
def test_a_report_is_drawn_again_without_its_runs(folder, tmp_path, capsys):
    """All of it, byte by byte, from report.json and speed.csv."""
    report = tmp_path / "report"
    report.mkdir()
    for name in ("report.json", "speed.csv"):
        shutil.copy(folder / "report" / name, report)
    assert {file.parent for file in write_report(report)} == {report}
    for file in sorted((folder / "report").iterdir()):
        assert file.read_bytes() == (report / file.name).read_bytes(), file.name
    for content, message in (('{"schema": "zoo-report/2"}', "report.json is damaged"), ("{", "report.json is damaged")):
        (report / "report.json").write_text(content)
        with pytest.raises(ConfigError, match=message):
            write_report(report)


def test_the_committed_study_is_what_its_data_give(tmp_path):
    study = ROOT / "docs" / "studies" / "hybrid_recall"
    analysis = read_report(study)
    for name, text in (("arms.csv", arms_csv(analysis)), ("measures.csv", measures_csv(analysis))):
        assert (study / name).read_text() == text, name
    page = (study / "report.md").read_text()
    assert front_table(analysis, "Pareto fronts", ("cache", "flops")).to_markdown() in page
    states = {p.arm: p.standing.state for p in analysis.points(analysis.measures.recall, "cache")}
    assert states["softmax"] == "not resolved", "an interval of nearly the whole range says nothing"


def test_commands_wrap_and_cells_know_their_columns(text):
    page = Page(text)
    tags = [(tag, attributes) for tag, attributes in page.tags]
    assert len([tag for tag, _ in tags if tag == "code"]) == 1 + len(ARMS)
    heads = {attributes["data-of"] for tag, attributes in tags if tag == "td"}
    assert {*ARMS, "layers", "parameters", "on the front", "not resolved"} <= heads


@pytest.mark.slow
def test_arms_without_an_axis_of_numbers_are_drawn_by_name(tmp_path):
    """Attentions of which none is softmax, but for one: shares of softmax layers would lie on each other."""
    arms = {name: [name] * 4 for name in ("lightning", "ssd", "retention", "softmax")}
    folder = write_sweep(tmp_path, arms, reference="softmax")
    analysis = analyze(read_sweep(folder))
    drawn = {picture.name: picture.svg for picture in draw_all(analysis, tmp_path)}
    for name in ("share-loss", "share-recall"):
        texts = [part.strip() for part in Page(drawn[name]).texts if part.strip()]
        assert set(arms) <= set(texts) and "share of layers with full softmax attention" not in texts
    assert [t for t in Page(drawn["pareto-recall-cache"]).texts if "iB" in t]


@pytest.mark.parametrize(
    ("costs", "ticks"),
    [
        ([288 * 2**10, 8 * 2**20], ["512 KiB", "1 MiB", "2 MiB", "4 MiB", "8 MiB"]),
        ([2.1 * 2**20, 3.9 * 2**20], ["2.5 MiB", "3 MiB", "3.5 MiB"]),
        ([0, 3 * 2**20], ["0 B", "1 MiB", "2 MiB", "3 MiB"]),
        ([4096, 4096], ["4 KiB"]),
        ([2**10, 2**30], ["1 KiB", "32 KiB", "1 MiB", "32 MiB", "1 GiB"]),
    ],
)
def test_caches_have_ticks_at_round_numbers_of_bytes(costs, ticks):
    _, ((axes,),) = panels()
    axes.plot(costs, [0, 1])
    cache_axis(axes, costs)
    assert [axes.xaxis.get_major_formatter()(place, 0) for place in axes.get_xticks()] == ticks


@pytest.mark.slow
def test_names_are_text_and_not_markup(tmp_path):
    """Both arms have the same share of softmax layers, so that their names stand on an axis too."""
    arm = '<b id="x">&"|$\\frac$'
    reason = "<script>alert(1)</script> `tick` | pipe"
    folder = write_sweep(
        tmp_path, {arm: ARMS["hybrid"], "_exact": ARMS["hybrid"][::-1]}, (0, 1), "_exact", name="<i>&amp;"
    )
    sweep_folder.log(folder, arm, 1, "failed", reason)
    write_report(folder)
    text = (folder / "report" / "report.html").read_text()
    page = Page(text)
    assert not [tag for tag, attributes in page.tags if tag == "script" or (tag == "b" and attributes)]
    assert "x" not in [attributes.get("id") for _, attributes in page.tags]
    texts = [part for part in page.texts if part]
    assert arm in texts and reason in texts and "Sweep <i>&amp;" in texts
    drawn = [part for picture in pictures_of(page) for part in picture.texts]
    assert "\u2009_exact" in drawn and "_exact" in drawn and arm in drawn  # in legends and on axes
    assert "share of layers with full softmax attention" not in drawn
    table = next(b for b in (folder / "report" / "report.md").read_text().split("\n\n") if "| reason |" in b)
    assert table.splitlines()[-1] == (
        r'| \<b id="x"\>&"\|$\\frac$ | 1 | \<script\>alert(1)\</script\> \`tick\` \| pipe |'
    )


def test_an_unfinished_sweep_says_so_on_top(tmp_path):
    folder = write_sweep(tmp_path, seeds=(0,))
    sweep_folder.log(folder, "hybrid", 0, "failed", "out of memory")
    sweep_folder.log(folder, "linear", 0, "trained")
    analysis = analyze(read_sweep(folder))
    text = html_page(analysis, [])
    assert Page(text) and text.index("1 of 3 runs finished, 1 failed, 1 not finished yet") < text.index("<h2>")
    assert "out of memory" in text and "one seed" in text
    assert "1 of 3 runs finished" in markdown_page(analysis, []).split("\n\n")[2]
    row = next(csv.DictReader(arms_csv(analysis).splitlines()[:2]))
    assert (row["arm"], row["finished"], row["softmax_share"]) == ("linear", "0", "")


def test_a_sweep_without_any_result_has_a_page(tmp_path):
    folder = write_sweep(tmp_path)
    (folder / "ledger.jsonl").unlink()
    write_report(folder, tmp_path / "out")
    assert "0 of 9 runs finished" in (tmp_path / "out" / "report.html").read_text()
    assert list((tmp_path / "out").glob("*.png")) == []


@pytest.mark.slow
def test_the_program_writes_where_it_is_told_and_refuses_other_folders(tmp_path, monkeypatch, capsys):
    folder = write_sweep(tmp_path / "sweep", {"exact": ARMS["exact"]}, seeds=(0,))
    script = str(ROOT / "scripts" / "report.py")
    monkeypatch.setattr(sys, "argv", [script, str(folder), f"out={tmp_path / 'a=b, c'}"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    assert not ended.value.code
    assert (tmp_path / "a=b, c" / "report.html").is_file() and not (folder / "report").exists()
    assert "report.html" in capsys.readouterr().out
    for arguments, message in (([str(tmp_path)], "has no sweep.json"), ([], "0 folders given: expected one SWEEP_DIR")):
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.slow
def test_formats_say_what_is_written_and_what_markdown_shows(tmp_path):
    folder = write_sweep(tmp_path / "sweep", {"exact": ARMS["exact"], "linear": ARMS["linear"]}, seeds=(0,))
    with picture_formats(["svg", "pdf"]):
        files = write_report(folder)
    names = {file.name for file in files}
    assert names == {file.name for file in (folder / "report").iterdir()}
    assert {"loss-val.svg", "loss-val.pdf"} <= names and not [name for name in names if name.endswith(".png")]
    page = (folder / "report" / "report.md").read_text()
    assert "](loss-val.svg)" in page and ".png" not in page


def test_every_table_of_the_markdown_page_is_a_file_in_latex(folder):
    """The caption is the title, the label is the name of the file, and the rows are as many."""
    page = (folder / "report" / "report.md").read_text()
    blocks = page.split("\n\n")
    tables = {title.removeprefix("## "): text for title, text in pairwise(blocks) if text.startswith("| ")}
    files = {file.stem: file.read_text() for file in (folder / "report").glob("*.tex")}
    assert len(files) == len(tables) == 7
    for name, text in files.items():
        title = re.search(r"\\caption{(.*)}", text)[1]
        assert f"\\label{{tab:{name}}}" in text
        assert len(text.split("\\midrule")[1].split("\\bottomrule")[0].strip().splitlines()) == (
            len(tables[title].splitlines()) - 2
        )


@pytest.fixture(scope="module")
def browser():
    """A Chromium on the path."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"a browser: none on the path of {', '.join(BROWSERS)}")
    return found


def browse(browser, page, width, profile):
    """DOM after loading at that width, and what the browser wrote to its log."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    options += [f"--window-size={width},900", f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([browser, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it_without_errors_and_nothing_sticks_out(browser, text, tmp_path, width):
    """Chromium's window is at least 500 wide, so the page stands in a frame of the width that is asked for."""
    inner = tmp_path / "inner.html"
    probe = "<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth], '*')</script>"
    inner.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", text).replace("</body>", f"{probe}</body>"))
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<title>none</title><iframe src="inner.html" width="{width}" height="800" style="border:0"></iframe>'
        "<script>onmessage = event => document.title = event.data.join(' ')</script>"
    )
    dom, log = browse(browser, outer, 1400, tmp_path / "profile")
    scroll, inside = map(int, re.search(r"<title>(\d+) (\d+)</title>", dom).groups())
    assert inside == width and scroll <= width
    assert "CONSOLE" not in log


@pytest.mark.slow
def test_a_browser_has_nothing_to_complain_of(browser, folder, tmp_path):
    dom, log = browse(browser, folder / "report" / "report.html", 1280, tmp_path)
    assert dom.count("<img") == 10 and "CONSOLE" not in log
    broken = tmp_path / "broken.html"
    broken.write_text("<script>console.error('seen')</script>")
    assert "CONSOLE" in browse(browser, broken, 1280, tmp_path)[1]  # so that its silence means something
