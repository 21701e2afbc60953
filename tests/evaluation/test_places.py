"""Where evaluations read and write: folders that are read-only, data that moved, names that are not UTF-8."""

import json
import os
import shutil

import pytest
import torch

from tests.evaluation.tiny_run import TEXTS, make_run
from zoo.config import ConfigError, load_run_config
from zoo.data import TextSource, TokenStore
from zoo.data.sources.moved import ChangedData
from zoo.evaluation import program
from zoo.evaluation.program import evaluate_runs, split_runs
from zoo.evaluation.results.records import read_results, read_samples
from zoo.evaluation.tasks.base import build_task
from zoo.runs.loaded_run import open_run

TASK = {"name": "perplexity"}


def read_only(run):
    """A run in whose folder no results can be written, whoever the user is."""
    (run / "eval").write_text("")
    return str(run)


def test_results_of_one_run_can_go_elsewhere(run_folder, tmp_path):
    out = tmp_path / "new" / "results"
    evaluate_runs(read_only(run_folder), build_task(TASK), out=str(out))
    written = {path.name for path in out.iterdir()}
    assert {"perplexity-text-test.json", "perplexity-text-test.training.png", "cells"} <= written
    assert (run_folder / "eval").read_text() == ""


def test_a_run_that_cannot_be_written_to_is_refused_before_it_is_read(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "open_run", lambda *a, **k: pytest.fail("was read"))
    with pytest.raises(ConfigError, match=r"cannot be written to: give out=FOLDER"):
        evaluate_runs(read_only(run_folder), build_task(TASK))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"out=.*file/x cannot be written to"):
        evaluate_runs(str(run_folder), build_task(TASK), out=str(tmp_path / "file" / "x"))


def test_looking_whether_a_folder_can_be_written_to_leaves_nothing(run_folder, tmp_path):
    before = sorted(run_folder.rglob("*"))
    assert program.result_folders([str(run_folder)], None) == [None]
    assert program.result_folders([str(run_folder)], str(tmp_path / "a" / "b")) == [tmp_path / "a" / "b"]
    assert sorted(run_folder.rglob("*")) == before and not (tmp_path / "a").exists()


@pytest.mark.slow
def test_of_several_runs_those_that_are_read_only_have_their_results_beside_the_comparison(tmp_path):
    runs = [make_run(tmp_path / name) for name in "ab"]
    evaluate_runs(f"{runs[0]},{read_only(runs[1])}", build_task(TASK), out=str(tmp_path / "out"))
    assert (tmp_path / "out" / "comparison.md").is_file()
    assert (runs[0] / "eval" / "perplexity-text-test.json").is_file()
    assert (tmp_path / "out" / "run-2" / "perplexity-text-test.json").is_file()


def test_moved_data_are_taken_if_their_content_is_that_of_training(run_folder, tmp_path):
    texts, cache = run_folder.parent / "text", run_folder.parent / "cache"
    run = open_run(str(run_folder))
    store = TokenStore.open_or_build(TextSource(str(texts)), "train", run.tokenizer, cache)
    content = torch.load(run.file, weights_only=True)
    content["zoo"]["data"] = {"train": store.key}
    torch.save(content, run.file)
    evaluate_runs(str(run_folder), build_task(TASK), out=str(tmp_path / "before"))
    moved = tmp_path / "moved ${x}"
    shutil.move(texts, moved)
    where = {"data_path": str(moved), "cache_dir": str(tmp_path / "cache2")}
    evaluate_runs(str(run_folder), build_task(TASK), out=str(tmp_path / "after"), **where)
    before, after = (read_results(tmp_path / name / "perplexity-text-test.json") for name in ("before", "after"))
    assert [r.value for r in before.results] == [r.value for r in after.results]
    (moved / "train" / "0.txt").write_text("other")
    (moved / "train" / "new.txt").write_text("more")
    with pytest.raises(ChangedData, match=r"train split .* \(1 new, train/new.txt; 1 changed, train/0.txt\)"):
        open_run(str(run_folder), **where)


def test_names_that_are_not_utf_8_are_written_as_text(tmp_path):
    made = make_run(tmp_path, texts={**TEXTS, "test": []})
    (tmp_path / "text" / "test" / "caf\udce9.txt").write_text("abc def\n" * 9)
    run = tmp_path / "run \udce9"
    made.rename(run)
    other = tmp_path / "more\udcff.txt"
    other.write_text("abc def\n" * 9)
    evaluate_runs(str(run), build_task(TASK))
    evaluate_runs(str(run), build_task({**TASK, "path": str(other)}))
    files = sorted((run / "eval").glob("*.json"))
    assert len(files) == 2
    for file in files:
        text = file.read_bytes().decode("utf-8")
        assert json.loads(text)["run"]["id"] == "run \\xe9" and "\\ud" not in text
        assert read_samples(file)
    assert os.fsencode(run).endswith(b"\xe9")


def test_what_lies_in_a_run_names_the_run(run_folder):
    for inside in ("checkpoints/last.ckpt", "checkpoints", "config.yaml"):
        with pytest.raises(ConfigError, match=r"lies in a run folder: expected the folder itself, .*with=signs\."):
            load_run_config(run_folder / inside)
    shutil.copy(run_folder / "checkpoints" / "last.ckpt", run_folder / "checkpoints" / "best.ckpt")
    with pytest.raises(ConfigError, match=r"with=signs with checkpoint=best\."):
        load_run_config(run_folder / "checkpoints" / "best.ckpt")
    with pytest.raises(ConfigError, match="run is not set"):
        split_runs("")
    with pytest.raises(ConfigError, match="run is not set"):
        split_runs(None)
