"""Question answering as eval.py asks it: what it notes, shows, and does without any data."""

import itertools
import json

import datasets
import pytest
from rich.console import Console

from tests.data.qa.test_presets import ROWS
from tests.evaluation.result_files import record, results
from zoo.config import ConfigError
from zoo.data.qa import PRESETS
from zoo.evaluation.evaluate import evaluate, evaluate_run
from zoo.evaluation.program import evaluate_runs, show
from zoo.evaluation.tasks.answer_results import COLUMNS, AnswerResults
from zoo.evaluation.tasks.base import build_task
from zoo.evaluation.tasks.result_kind import Written
from zoo.runs.loaded_run import open_run


def test_rows_that_were_left_out_are_noted(run_folder, tmp_path):
    rows = [{"text": f"Name: Ann {n}\nRank: {n}\nName:", "value": f"Ann {n}"} for n in range(3)]
    rows += [{"text": "Name:", "value": "Ann"}]
    (tmp_path / "swde").mkdir()
    (tmp_path / "swde" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"name": "qa", "preset": "swde", "path": str(tmp_path / "swde"), "lengths": [64], "samples": 2}
    outcome = evaluate_run(open_run(run_folder), build_task(options))
    assert "Rows whose 'text' is a single sentence, left out: 1." in outcome.warnings


def test_a_run_of_which_everything_was_left_out_is_an_error(run_folder, tmp_path):
    console = Console(record=True, width=200)
    task = build_task({"name": "hub", "names": ["squad", "fda"], "path": str(tmp_path / "absent")})
    with pytest.raises(ConfigError, match=r"has no result: every task was left out"):
        evaluate_runs([str(run_folder)], task, console=console)
    assert "squad is left out" in (text := console.export_text()) and "fda is left out" in text


def test_every_number_of_a_narrow_table_can_be_read(tmp_path):
    variants = ["xquad_en_dev", *(f"xquad_en_dev/{part}" for part in ("no_context", "zero_length", "generated"))]
    records = []
    for variant, metric in itertools.product(variants, COLUMNS):
        value, chance = 123.25 if metric == "answer_nll" else 0.5, 0.13 if metric.startswith("rank") else None
        records.append(record("qa", variant, 1024, None, metric, value, (0.25, 0.75), 1190, "sample", chance, True))
    written = Written("qa", "qa", results(records, {"choices": 8}), [], [], AnswerResults())
    with (tmp_path / "out").open("w+", encoding="utf-8") as out:
        show(written, Console(file=out, width=80))
        out.seek(0)
        text = out.read()
    assert "…" not in text and all(len(line) <= 80 for line in text.splitlines())
    assert text.count("0.50 (0.13)") == 2 * len(variants)
    for number in ("123.25", "0.25..0.75", "1190", "1,024"):
        assert text.count(number) == len(variants)


def test_the_suite_asks_the_hub_for_every_preset(run_folder, monkeypatch):
    asked = []
    others = [
        {
            "context": f"River {n} flows by town {n}. It is long.",
            "answers": {"text": [f"town {n}"], "answer_start": [0]},
        }
        for n in range(30)
    ]
    rows = {"squad": [ROWS["squad"], *(ROWS["squad"] | {"id": str(n)} | o for n, o in enumerate(others))]}

    def load_dataset(id, config=None, revision=None, streaming=False):
        name = next(name for name in ("squad", "fda") if PRESETS[name].id == id)
        asked.append((name, config, revision, streaming))
        return datasets.DatasetDict({PRESETS[name].split: datasets.Dataset.from_list(rows.get(name, [ROWS[name]]))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = build_task({"name": "hub", "names": ["squad", "fda"], "lengths": [512], "samples": 1, "revision": "abc"})
    written = list(evaluate(open_run(run_folder), task))
    assert [(one.protocol["preset"], one.records[0].task) for one in written] == [
        ("squad", "qa"),
        ("fda", "qa"),
    ]
    assert asked == [(name, None, "abc", False) for name in ("squad", "fda")]
    for one in written:
        assert {"answer_nll", "exact_match"} <= {r.metric for r in one.records} and one.files[0].is_file()
