"""What a program does when its user interrupts it early, and when nobody reads what it prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import in_ci
from zoo.cli import friendly_errors
from zoo.config import LABEL, run_label

ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = """
import builtins, runpy, sys
inner = builtins.__import__
def interrupting(name, *args, **kwargs):
    if name in ("torch", "pydantic"):
        raise KeyboardInterrupt
    return inner(name, *args, **kwargs)
builtins.__import__ = interrupting
sys.argv = [{program!r}]
runpy.run_path({program!r}, run_name="__main__")
"""
PRINTS = """
from zoo.cli import friendly_errors
with friendly_errors():
    for number in range(100_000):
        print(number)
open("{done}", "w").close()
"""


@pytest.mark.parametrize(
    "program", ["train.py", "eval.py", *in_ci(*sorted(f"scripts/{f.name}" for f in ROOT.glob("scripts/*.py")))]
)
def test_ctrl_c_during_imports_is_one_line(program):
    command = [sys.executable, "-c", INTERRUPTED.format(program=program)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("stream", ["", " 2>&1"])
def test_output_that_nobody_reads_any_more_is_dropped_and_the_work_goes_on(tmp_path, stream):
    code = PRINTS.format(done=tmp_path / "done")
    pipe = f'"$0" -c "$1"{stream} | head -1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(["bash", "-c", pipe, sys.executable, code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n0\n", "")
    assert (tmp_path / "done").exists()


def test_the_name_of_a_run_says_what_its_layers_are():
    assert run_label("lightning", "attention", None) == "lightning"
    assert run_label("lightning", "softmax", None) == "softmax"
    assert run_label("lightning", "4xsoftmax+softmax", None) == "softmax"
    assert run_label("lightning", "7xattention+softmax", None) == "7xlightning+softmax"
    assert run_label("gqa", "attention", "0:1xsoftmax+-1:attention") == "gqa@0_1xsoftmax+-1_gqa"
    assert len(run_label("gqa", "+".join(["gqa", "softmax"] * 40), None)) == LABEL


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (PermissionError, "Permission denied; ask for the right"),
        (IsADirectoryError, "Is a directory; expected a file"),
        (NotADirectoryError, "Not a directory; a part of the path is a file"),
        (OSError, "Input/output error; check the path"),
    ],
)
def test_a_file_that_the_system_refuses_is_one_line_that_names_it(capsys, kind, said):
    numbers = {PermissionError: 13, IsADirectoryError: 21, NotADirectoryError: 20, OSError: 5}
    with pytest.raises(SystemExit) as ended, friendly_errors():
        raise kind(numbers[kind], os.strerror(numbers[kind]), "a  b\n[1]")
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: a  b [1]: {said}") and line.count("\n") == 1


def test_an_error_of_the_system_that_is_of_no_file_is_the_programs(monkeypatch):
    with pytest.raises(BlockingIOError), friendly_errors():
        raise BlockingIOError(11, "try again")
    monkeypatch.setenv("ZOO_DEBUG", "1")
    with pytest.raises(PermissionError), friendly_errors():
        raise PermissionError(13, "no", "file")


@pytest.mark.parametrize("option", [*in_ci("task.path", "run"), "prompt_file"])
def test_files_and_folders_that_cannot_be_read_are_one_line_everywhere(tmp_path, option):
    """A folder in place of a file, and a file in place of a folder, which no user may read, root neither."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "run" / "config.yaml").mkdir(parents=True)
    program, given = {
        "task.path": ("eval.py", ["run=run", "task=qa", "task.path=file/x.json"]),
        "run": ("eval.py", ["run=file/x"]),
        "prompt_file": ("scripts/generate.py", ["run=run", "prompt_file=run"]),
    }[option]
    done = subprocess.run([sys.executable, ROOT / program, *given], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
