"""scripts/compare.py: pictures of one data set and of several, with speeds and without; runs that are paired."""

import math

import pytest
from omegaconf import OmegaConf

from tests.evaluation.tiny_run import make_run, small_decoder
from tests.tiers import in_ci
from zoo.commands import compare
from zoo.evaluation.compare import compare_runs
from zoo.evaluation.evaluate import evaluate_run
from zoo.evaluation.results.records import read_held_out
from zoo.evaluation.tasks.base import build_task
from zoo.evaluation.tasks.result_kind import read_evaluation
from zoo.runs.loaded_run import open_run

RUN = {"label": "a", "evaluations": [], "held_out": []}
RUN |= {"parameters": 9, "bits": 2.0, "ci95": None, "tokens": 100, "cache": 8, "short_cache": 4, "rate": math.nan}


def run(data, attention, curve):
    return {**RUN, "data": data, "attention": attention, "curve": curve}


@pytest.mark.parametrize("sets", [*in_ci((("wiki",),)), ("wiki", "books")])
@pytest.mark.parametrize("contexts", [*in_ci(((),)), (512, 1024)])
def test_a_picture_has_a_panel_per_data_set_and_one_of_speeds(tmp_path, monkeypatch, sets, contexts):
    runs = [run(name, "softmax", [(100, 3.0), (200, 2.5)]) for name in sets] + [run(sets[0], "gqa", [])]
    speed = [compare.Speed(attention="softmax", context=context, tokens_per_second=5.0) for context in contexts]
    drawn = []
    save = compare.save_figure
    monkeypatch.setattr(compare, "save_figure", lambda file, figure: drawn.append(figure) or save(file, figure))
    assert compare.picture(tmp_path / "x.png", runs, speed) == [tmp_path / "x.png"]
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles == [f"{name}: validation" for name in sets] + ["training speed"] * bool(contexts)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_is_a_dash():
    (table,) = compare.tables([run("wiki", "softmax", [])], [])
    assert table.title == "wiki, 100 training tokens"
    assert "| `softmax` | 9 | 2.000 (one document) | 0.00 MiB | 0.00 MiB | - |" in table.to_markdown()


def test_tables_are_written_in_latex_too_and_pictures_in_every_format(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "describe", lambda folder: run("wiki", folder.name, [(100, 3.0), (200, 2.5)]))
    files = [f"out={tmp_path / 'x.md'}", f"picture={tmp_path / 'x.svg'}", "formats=[pdf,svg]"]
    compare.main([str(tmp_path / "softmax"), str(tmp_path / "gqa"), *files])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.md", "x.pdf", "x.svg", "x.tex"]
    page = (tmp_path / "x.md").read_text()
    assert page.startswith("### wiki, 100 training tokens\n\n| attention | ") and page in capsys.readouterr().out
    assert r"\texttt{gqa} & 9 & " in (tmp_path / "x.tex").read_text()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Three runs that were asked the same, the third of another data set; the first two of the same text."""
    texts = {
        "train": ["one two\n" * 9],
        "validation": ["three\n" * 9],
        "test": [f"{n} four\n" * n for n in range(3, 12)],
    }
    folders = []
    for number, name in enumerate(("text", "text", "other")):
        folder = make_run(tmp_path_factory.mktemp("run"), small_decoder(seed=number), texts)
        own = {"schedule": {"pattern": "attention"}, "data": {"name": name}}
        config = OmegaConf.merge(OmegaConf.load(folder / "config.yaml"), own)
        OmegaConf.save(config, folder / "config.yaml")
        for task in ({"name": "perplexity"}, {"name": "perplexity", "stride": 8}):
            evaluate_run(open_run(folder), build_task(task))
        folders.append(folder)
    return folders


def test_runs_on_the_same_data_are_paired_by_all_that_they_were_asked(evaluated, capsys):
    compare.main(list(map(str, evaluated)))
    text, other, evaluations = capsys.readouterr().out.split("### ")[1:]
    first, second = (read_held_out(folder)[1] for folder in evaluated[:2])
    assert [line.split(" | ")[3] for line in text.splitlines()[4:6] if f"{first.value:.3f} (" in line] == ["-"]
    (shown,) = (line.split(" | ")[3] for line in text.splitlines()[4:6] if f"{second.value:.3f} (" in line)
    files = [folder / "eval" / "perplexity-text-test.json" for folder in evaluated[:2]]
    rows = compare_runs([(file, [read_evaluation(file)]) for file in files])
    (paired,) = (r["differences"][0] for r in rows if (r["metric"], r["variant"]) == (second.metric, second.variant))
    star = " \\*" if paired["resolved"] else ""
    assert paired["value"] == pytest.approx(second.value - first.value)
    assert shown == "{:+.3f}{} ({:.3f} to {:.3f})".format(paired["value"], star, *paired["ci95"])
    assert other.startswith("other, 700 training tokens") and "paired" not in other
    assert evaluations.startswith("text, evaluations") and "| perplexity | sliding | 16 |" in evaluations


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["picture=x.jpg"], r"picture=x\.jpg: expected a name that ends in \.png, \.svg, \.pdf\."),
        (["formats=jpg"], r"formats.*jpg.*expected.*png"),
    ],
)
def test_other_formats_are_refused_before_any_work(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(compare, "describe", lambda folder: 1 / 0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        compare.main(["run", *arguments])


def test_another_file_of_speeds_is_refused(tmp_path):
    file = tmp_path / "speed.json"
    file.write_text('{"rows": [{"attention": 1}]}')
    with pytest.raises(
        ValueError, match=r"speed=.*speed\.json: expected the JSON that scripts/bench_models\.py writes"
    ):
        compare.read_speed(str(file))
    assert compare.read_speed(None) == []
