"""A task of a new kind from outside is evaluated, compared, drawn and reported without a change inside."""

import csv
import json
import shutil

import pytest
from rich.console import Console

from tests.evaluation.tiny_run import make_run, save_checkpoint, small_decoder
from tests.plugins.new_kind import NAME, write_package
from tests.sweeps.sweep_folder import write_sweep
from zoo.config import ConfigError
from zoo.evaluation.program import evaluate_runs
from zoo.evaluation.results.records import ResultError, read_results
from zoo.evaluation.tasks.base import build_task, task_help
from zoo.options.programs import EvaluationOptions, read_program
from zoo.plugins import import_plugins
from zoo.registry import METRICS, TASKS
from zoo.runs.loaded_run import open_run
from zoo.sweeps.page.write import write_report


def task(*typed):
    return build_task(read_program("eval", EvaluationOptions, [f"plugins={NAME}", "task=edits", *typed], None).task)


@pytest.fixture
def runs(clean, tmp_path):
    """Two runs whose models differ, and the package beside them."""
    write_package(tmp_path)
    folders = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        folder = make_run(tmp_path / str(number))
        known = open_run(folder).trained.tokenizer
        save_checkpoint(folder / "checkpoints" / "last.ckpt", small_decoder(seed=number), tokenizer=known)
        folders.append(folder.rename(tmp_path / f"run-{number}"))
    return folders


@pytest.fixture
def compared(runs, tmp_path):
    """What the comparison of both says on the screen."""
    console = Console(record=True, width=160)
    evaluate_runs(",".join(map(str, runs)), task(), out=str(tmp_path / "compared"), console=console)
    return console.export_text()


def test_its_units_are_paired_its_table_is_shown_and_its_pictures_are_drawn(compared, runs, tmp_path):
    for folder in runs:
        (record,) = read_results(folder / "eval" / "edits.json").results
        assert (record.metric, record.unit, record.n) == ("edits", "string", 9)
        assert (folder / "eval" / "edits.png").stat().st_size
    assert "edits to make" in compared and "9 strings were made up" in compared
    (row,) = json.loads((tmp_path / "compared" / "comparison.json").read_text())["rows"]
    first, second = (entry["value"] for entry in row["runs"])
    (difference,) = row["differences"]
    assert difference["value"] == pytest.approx(second - first) != 0 and difference["n"] == 9
    assert difference["ci95"] is not None and difference["resolved"] in (True, False)
    assert (
        row["higher_is_better"] is False
        and "| edits | made up | 12 | edits |" in (tmp_path / "compared" / "comparison.md").read_text()
    )
    assert (tmp_path / "compared" / "edits.png").stat().st_size


def test_its_options_are_in_the_name_and_the_help_and_its_parts_are_kept(runs):
    (written,) = (folder for folder in [runs[0]])
    for typed in ((), ("task.tokens=7",), ("task.tokens=7", "task.fresh=true")):
        evaluate_runs(str(written), task(*typed), console=Console(record=True))
    assert sorted(file.name for file in (written / "eval").glob("*.json")) == ["edits-tokens7.json", "edits.json"]
    assert len(list((written / "eval" / "cells").iterdir())) == 2
    assert read_results(written / "eval" / "edits.json").protocol == {"tokens": 12, "strings": 9, "seed": 0}
    assert any("task.strings=9" in line and "made up" in line for line in task_help())
    with pytest.raises(ConfigError, match=r"task\.tokens=0: expected a whole number >= 1 \(tokens of a string\)"):
        task("task.tokens=0")


def test_it_is_reported_in_a_sweep(compared, runs, tmp_path):
    sweep = write_sweep(tmp_path / "swept", seeds=(0,), tasks=["perplexity", "edits"], plugins=[NAME])
    for arm, folder in {"linear": runs[0], "hybrid": runs[0], "exact": runs[1]}.items():
        for file in (folder / "eval").glob("edits.*"):
            shutil.copy(file, sweep / "arms" / arm / "seed-0" / "eval")
    write_report(sweep)
    page = (sweep / "report" / "report.md").read_text()
    assert "edits of 12 tokens" in page and "edits: strings to mend" in page and "no finished run" not in page
    assert (sweep / "report" / "share-strings-to-mend.png").stat().st_size
    with (sweep / "report" / "measures.csv").open() as file:
        rows = {(row["arm"], row["measure"]): row for row in csv.DictReader(file)}
    row = rows["linear", "edits of 12 tokens"]
    first, second = (read_results(folder / "eval" / "edits.json").results[0].value for folder in reversed(runs))
    assert float(row["difference"]) == pytest.approx(second - first) != 0 and row["difference_low"]


def test_a_result_of_a_package_that_is_not_imported_is_refused_by_name(compared, runs):
    for registry in (METRICS, TASKS):
        del registry._entries["edits"]
    with pytest.raises(ResultError, match=r"\.metric: .*no metric is called so.* plugins=\[\.\.\.\]"):
        read_results(runs[0] / "eval" / "edits.json")
    import_plugins([NAME])
