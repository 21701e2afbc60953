"""eval.py as it is typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.evaluation.results.records import read_results

ROOT = Path(__file__).resolve().parents[2]


def run_eval(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "eval.py"), "device=cpu", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
def test_it_prints_a_table_writes_results_and_nothing_else(run_folder, tmp_path):
    here = tmp_path / "elsewhere"
    here.mkdir()
    done = run_eval(here, f"run={run_folder}", "task=perplexity", "task.stride=8")
    assert done.returncode == 0, done.stderr
    file = run_folder / "eval" / "perplexity-text-test-stride8.json"
    assert "bits_per_byte" in done.stdout
    assert str(file) in done.stdout
    assert read_results(file).protocol["stride"] == 8
    assert read_results(file).run.cmd.split()[0].endswith("eval.py")
    assert sorted(p.suffix for p in (run_folder / "eval").iterdir() if p.name != "cells") == [
        ".gz",
        ".json",
        ".png",
        ".png",
    ]
    assert list(here.iterdir()) == []


@pytest.mark.slow
def test_errors_are_one_line_and_exit_code_2(run_folder, tmp_path):
    file = run_folder / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:500])
    done = run_eval(tmp_path, f"run={run_folder}")
    assert done.returncode == 2
    assert "cannot be read as a checkpoint" in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
