"""Several runs side by side."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.evaluation.tiny_run import make_run, save_checkpoint, small_decoder
from zoo.config import ConfigError
from zoo.evaluation.compare import compare_runs, comparison_notes, show_comparison, write_comparison
from zoo.evaluation.evaluate import evaluate_run
from zoo.evaluation.program import evaluate_runs, split_runs
from zoo.evaluation.results.records import read_results, read_samples
from zoo.evaluation.scoring.answer_records import line_values
from zoo.evaluation.tasks.base import build_task
from zoo.evaluation.tasks.result_kind import read_evaluation
from zoo.runs.loaded_run import open_run

KV = {"name": "kv", "variants": ["default"], "lengths": [500], "depths": [0, 1], "samples": 4}


def leaves(node):
    if isinstance(node, (list, dict)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from leaves(value)
    else:
        yield node


@pytest.fixture
def two_runs(tmp_path):
    """Two runs on the same data whose models differ."""
    folders = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        folder = make_run(tmp_path / str(number))
        known = open_run(folder).trained.tokenizer
        save_checkpoint(folder / "checkpoints" / "last.ckpt", small_decoder(seed=number), tokenizer=known)
        folders.append(folder)
    return folders


def evaluated(folders, *tasks):
    return [(folder.parent.name, [evaluate_run(open_run(folder), build_task(t)) for t in tasks]) for folder in folders]


def test_differences_are_of_the_same_samples(two_runs):
    runs = evaluated(two_runs, KV, {"name": "perplexity"})
    rows = compare_runs(runs)
    row = next(r for r in rows if (r["metric"], r["length"], r["depth"]) == ("answer_nll", 500, None))
    values = []
    for _, (written, _) in runs:
        lines = {(x["id"], x["depth"]): x for x in written.samples if x["length"] == 500}
        values.append({key: line_values(line)["answer_nll"] for key, line in lines.items()})
    want = np.mean([values[1][key] - values[0][key] for key in values[0]])
    (difference,) = row["differences"]
    assert difference["value"] == pytest.approx(want)
    assert difference["n"] == 8
    assert difference["resolved"] == (not difference["ci95"][0] <= 0 <= difference["ci95"][1])
    bits = next(r for r in rows if r["metric"] == "bits_per_byte" and r["variant"] == "window")
    assert bits["differences"][0]["value"] == pytest.approx(bits["runs"][1]["value"] - bits["runs"][0]["value"])


def test_a_run_does_not_differ_from_itself(two_runs):
    rows = compare_runs(evaluated([two_runs[0], two_runs[0]], KV))
    assert {d["value"] for row in rows for d in row["differences"]} == {0.0}
    assert not any(d["resolved"] for row in rows for d in row["differences"])


@pytest.mark.slow
def test_samples_that_differ_are_not_paired(two_runs):
    first = evaluate_run(open_run(two_runs[0]), build_task(KV), seed=0)
    other = evaluate_run(open_run(two_runs[1]), build_task(KV), seed=1)
    other = replace(other, stem=first.stem)
    rows = compare_runs([("a", [first]), ("b", [other])])
    assert rows and all(d["value"] is None and d["resolved"] is None for row in rows for d in row["differences"])
    assert len(comparison_notes([("a", [first]), ("b", [other])])) == 1


@pytest.mark.slow
def test_the_page_has_what_the_screen_has(two_runs, tmp_path):
    runs = evaluated(two_runs, KV)
    rows = compare_runs(runs)
    files = write_comparison(tmp_path / "out", runs, rows)
    picture = "kv-default-lengths500-depths0_1-samples4.png"
    assert [file.name for file in files] == ["comparison.json", "comparison.md", "comparison.tex", picture]
    assert json.loads(files[0].read_text())["rows"] == json.loads(json.dumps(rows))
    console = Console(record=True, width=160)
    show_comparison(rows, files, console)
    screen, page = console.export_text(), files[1].read_text().replace("\\_", "_")
    body = [line for line in page.splitlines() if line.startswith("| kv")]
    assert body and all(line.count("|") == 7 for line in body)
    assert all(cell.strip() in screen for line in body for cell in line.strip("| ").split("|"))


def test_eval_py_compares_runs_that_are_named_together(two_runs, tmp_path):
    console = Console(record=True, width=160)
    evaluate_runs(",".join(map(str, two_runs)), build_task(KV), out=str(tmp_path / "out"), console=console)
    shown = console.export_text()
    assert "0/a run, with=signs" in shown and "1/a run, with=signs" in shown
    assert (tmp_path / "out" / "comparison.md").is_file()


def test_how_runs_are_named(two_runs, tmp_path):
    assert split_runs("a,b, c") == ["a", "b", "c"]
    assert split_runs(str(two_runs[0])) == [str(two_runs[0])]  # this folder has a comma
    assert split_runs(["a", "b"]) == ["a", "b"]
    with pytest.raises(ConfigError, match="names a/ twice"):
        split_runs(["a/", "a"])


@pytest.mark.slow
def test_parts_of_perplexity_are_paired_by_document(two_runs):
    runs = evaluated(two_runs, {"name": "perplexity"}, {"name": "perplexity_context", "lengths": [4, 8], "target": 4})
    rows = {(r["task"], r["variant"], r["length"]): r for r in compare_runs(runs) if r["metric"] == "bits_per_byte"}
    parts = [rows["perplexity", part, 16] for part in ("recall", "other")]
    for row in [*parts, rows["perplexity_context", "context", 8]]:
        (difference,) = row["differences"]
        assert difference["value"] == pytest.approx(row["runs"][1]["value"] - row["runs"][0]["value"])
        assert difference["resolved"] is None  # three documents


@pytest.mark.slow
def test_a_run_without_finite_numbers_has_results_and_no_differences(two_runs, tmp_path):
    broken = small_decoder(seed=1)
    with torch.no_grad():
        broken.embedding.weight.fill_(float("nan"))
    known = open_run(two_runs[1]).trained.tokenizer
    save_checkpoint(two_runs[1] / "checkpoints" / "last.ckpt", broken, tokenizer=known)
    context = {"name": "perplexity_context", "lengths": [4, 8], "target": 4}
    position = {"name": "perplexity_position"}
    runs = evaluated(two_runs, {"name": "perplexity"}, KV, context, position)
    for written in runs[1][1]:
        numbers = {r.metric: r.value for r in written.records if "/" not in r.variant and r.length}
        lost = {"bits_per_byte", "perplexity", "answer_nll", "rank_accuracy"} & numbers.keys()
        assert lost and all(numbers[metric] is None for metric in lost)
        assert "Not finite, and left out: " in written.warnings[-1]
        assert read_results(written.files[0]).results and None in [*leaves(read_samples(written.files[0]))]
    stored = [(label, [read_evaluation(written.files[0]) for written in run]) for label, run in runs]
    for found in (runs, stored):
        rows = [row for row in compare_runs(found) if row["runs"][1]["value"] is None]
        assert rows and all(row["differences"][0]["value"] is None for row in rows)
    files = write_comparison(tmp_path / "out", runs, compare_runs(runs))
    assert "NaN" not in files[0].read_text()


@pytest.mark.slow
def test_other_texts_are_pointed_out_and_not_paired(two_runs):
    changed = two_runs[1].parent / "text" / "test" / "0.txt"
    changed.write_text("something else\n" * 9)
    runs = evaluated(two_runs, {"name": "perplexity"}, KV)
    bits = next(r for r in compare_runs(runs) if r["metric"] == "bits_per_byte")
    assert bits["differences"][0]["value"] is None
    (note,) = comparison_notes(runs)
    assert note.startswith("perplexity-text-test: the runs were not asked about the same text")


@pytest.mark.slow
def test_other_questions_are_pointed_out_at_their_lengths(two_runs):
    """Files of the same name whose samples at a length are not the same, as with other trained lengths."""
    tasks = [{"name": "perplexity_context", "lengths": lengths, "target": 8} for lengths in ([8, 16], [8, 24])]
    runs = [(str(i), [evaluate_run(open_run(two_runs[i]), build_task(task))]) for i, task in enumerate(tasks)]
    runs[1][1][0] = replace(runs[1][1][0], stem=runs[0][1][0].stem)
    rows = [row for row in compare_runs(runs) if row["metric"] == "bits_per_byte" and row["variant"] == "context"]
    assert [(row["length"], row["differences"][0]["value"]) for row in rows] == [(8, None)]
    (note,) = comparison_notes(runs)
    assert "not asked the same questions at lengths of 8 tokens" in note and note.startswith(runs[0][1][0].stem)
    assert comparison_notes([runs[0], runs[0]]) == []


@pytest.mark.slow
def test_a_task_that_one_run_lacks_is_left_out_with_a_note(two_runs):
    both, one = evaluated(two_runs, KV, {"name": "perplexity"})
    runs = [both, (one[0], one[1][:1])]
    assert {row["task"] for row in compare_runs(runs)} == {"kv"}
    assert comparison_notes(runs) == ["perplexity-text-test: not all runs have it."]


def test_a_folder_that_is_no_run_is_refused_before_any_work(two_runs, tmp_path):
    console = Console(record=True)
    with pytest.raises(ConfigError, match="nope is not a run folder"):
        evaluate_runs([str(two_runs[0]), str(tmp_path / "nope")], build_task(KV), console=console)
    assert console.export_text() == "" and not (two_runs[0] / "eval").exists()
