"""What a program does when its user interrupts it early, and when nobody reads what it prints."""

import subprocess
import sys
from pathlib import Path

import pytest

from zoo.config import LABEL, run_label

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED = """
import builtins, runpy, sys
inner = builtins.__import__
def interrupting(name, *args, **kwargs):
    if name == "torch":
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


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
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
