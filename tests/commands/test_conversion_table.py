"""The table of a run and its conversions, from real evaluations of tiny runs."""

import re
from pathlib import Path

import pytest

from tests.evaluation.tiny_run import make_run, small_decoder
from zoo.cli import friendly_errors
from zoo.commands import conversion_table
from zoo.conversion.convert_run import convert_run
from zoo.evaluation.evaluate import evaluate_run
from zoo.evaluation.results.records import read_held_out
from zoo.evaluation.tasks.perplexity import PerplexityTask
from zoo.runs.loaded_run import open_run

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "conversion_table.py"


@pytest.fixture
def call(capsys):
    """The command with the arguments given; what it prints."""

    def run(*arguments):
        with friendly_errors():
            conversion_table.main(list(map(str, arguments)))
        return capsys.readouterr().out

    return run


@pytest.fixture
def runs(tmp_path):
    """A run with two query heads, and the same with one key head; both evaluated."""
    run = open_run(make_run(tmp_path, small_decoder(("softmax", "lightning"))))
    converted = open_run(convert_run(run, "mqa", 1, "mean", tmp_path / "mean").folder)
    for each in (run, converted):
        evaluate_run(each, PerplexityTask())
    return run.folder, converted.folder


@pytest.mark.slow
def test_rows_hold_the_evaluations_the_heads_and_the_bytes_of_cache(runs, call, tmp_path):
    out = tmp_path / "table.md"
    text = call(*runs, "context=64", "batch=2", "tokens=3", "rounds=2", f"out={out}")
    assert out.read_text() == text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:4]]
    assert [row[0] for row in rows] == [runs[0].name, "mean"]
    assert [row[1] for row in rows] == ["2/2 2/2", "1/2 2/2"]
    for folder, row in zip(runs, rows):
        record = read_held_out(folder)[1]
        assert row[2] == f"{record.value:.4f}" and row[3] == "{:.4f} to {:.4f}".format(*record.ci95)
        assert float(row[5].replace(",", "")) > 0
    state = 2 * 8 * 8 * 4  # of the lightning layer: two heads, eight by eight, fp32
    assert [int(row[4].replace(",", "")) for row in rows] == [2 * 64 * kv * 8 * 4 + state for kv in (2, 1)]
    assert "Cache of one sequence of 64 tokens, in float32" in text and "2 sequences" in text


def test_wrong_arguments_are_named(runs, call, capsys, tmp_path):
    bare = make_run(tmp_path / "bare")
    for arguments, message in (
        ([], "no run: expected"),
        ([bare], "has not been evaluated"),
        ([tmp_path / "nothing"], "nothing"),
        ([runs[0], "rounds=none"], "rounds=none: expected a whole number >= 1"),
        ([runs[0], "tokens=0"], "tokens=0: expected a whole number >= 1"),
    ):
        with pytest.raises(SystemExit, match="2"):
            call(*arguments)
        error = capsys.readouterr().err
        assert re.match("error: .*" + re.escape(message), error) and error.count("\n") == 1
