"""Every command that a program prints can be pasted where it was printed, whatever the folders are called."""

import re
import runpy
import shlex
import sys

import pytest

from tests.training.conftest import write_text
from zoo.cli import friendly_errors
from zoo.commands.train import tell_interrupted
from zoo.evaluation.results.records import read_held_out
from zoo.paths import ROOT, split_command
from zoo.sweeps.compose import read_plan
from zoo.sweeps.driver import Driver
from zoo.sweeps.page.arm_tables import commands
from zoo.sweeps.status import show_summary
from zoo.training.signals import Interrupted

NASTY = "it's  ü [1] #${x} $HOME, {y}=~"
SMALL = [
    "experiment=tiny",
    "data=text",
    "attention=softmax",
    "data.length=32",
    "model.width=32",
    "model.heads=2",
    "trainer.accelerator=cpu",
    "trainer.max_steps=1",
    "trainer.batch_size=2",
]


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    """Function that runs a program in a folder of an odd name; returns its status and what it printed."""
    folder = tmp_path / NASTY
    write_text(folder / "text [1]")
    monkeypatch.chdir(folder)

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        try:
            runpy.run_path(str(ROOT / program), run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return run


def printed_commands(text):
    """Program and arguments of every command in a text; a shell and this project read them alike."""
    found = re.findall(r"(?:: |^)(python .*\.py .*)$", text, re.MULTILINE)
    assert found and all(shlex.split(line) == split_command(line) for line in found)
    return [(words[1].removeprefix(f"{ROOT}/"), words[2:]) for words in map(shlex.split, found)]


def only(text):
    (command,) = printed_commands(text)
    return command


def paste(start, text, *more):
    """Run the one command in a text, which must succeed."""
    program, arguments = only(text)
    status, printed = start(program, *arguments, *more)
    assert status == 0, printed
    return printed


@pytest.mark.slow  # trains thrice
def test_commands_of_single_runs_can_be_pasted(start, tmp_path, capsys):
    new = [*SMALL, "data.path=text [1]", f"data.cache_dir={tmp_path / 'cache'}", "hydra.run.dir=a run, 'x'"]
    status, trained = start("train.py", *new)
    assert status == 0, trained
    run = tmp_path / NASTY / "a run, 'x'"
    assert only(trained) == ("eval.py", [f"run={run}"])
    with pytest.raises(SystemExit), friendly_errors():
        read_held_out(run)
    assert "perplexity-text-test" in paste(start, capsys.readouterr().err, "device=cpu", "out=results")
    assert (tmp_path / NASTY / "results").is_dir()
    status, refused = start("train.py", *new)
    assert status == 2 and "already holds a run" in refused
    assert only(paste(start, refused, "trainer.max_steps=2")) == only(trained)
    tell_interrupted(Interrupted(15, 2), str(run))
    assert only(paste(start, capsys.readouterr().err, "trainer.max_steps=3")) == only(trained)
    status, converted = start("scripts/convert.py", f"run={run}", "to=mqa", "device=cpu", "out=b, c")
    assert status == 0, converted
    assert only(converted) == ("eval.py", [f"run={run},b, c"])
    assert "2 of 2" in paste(start, converted, "device=cpu", "task=perplexity", "out=compared")


@pytest.mark.slow
def test_commands_of_sweeps_can_be_pasted(start, tmp_path, capsys, monkeypatch):
    own = ["data.path=text [1]", "hydra.sweep.dir=s [1] ${x} 'y'", "mixers.window.window=8,16"]
    plan = read_plan(["-m", "sweep=window", *SMALL[:2], *own])
    driver = Driver(plan, launcher=None)
    driver.stop_signal = 15
    driver.conclude()
    program, arguments = only(capsys.readouterr().out)
    again = read_plan(arguments)
    assert program == "train.py" and (again.folder, again.command) == (plan.folder, plan.command)
    assert [run.key for run in again.runs] == [run.key for run in plan.runs]
    show_summary(plan, {}, {})
    program, arguments = only(capsys.readouterr().out)
    assert (program, arguments) == ("scripts/report.py", [str(plan.folder)])
    assert str(plan.folder) == "s [1] ${x} 'y'"


@pytest.mark.slow
def test_commands_of_a_report_compose_to_the_runs_of_the_sweep(start):
    from types import SimpleNamespace

    from zoo.options.programs import compose_training

    plan = read_plan(["-m", "sweep=window", *SMALL[:2], "data.path=text [1]", "hydra.sweep.dir=s caf\udce9", "seed=3"])
    runs = [SimpleNamespace(arm=r.arm, seed=r.seed, overrides=r.overrides, status="finished") for r in plan.runs]
    whole, *arms = commands(SimpleNamespace(sweep=SimpleNamespace(command=plan.command, runs=runs)))
    assert read_plan(split_command(whole)[2:]).runs[0].key == plan.runs[0].key and "caf" not in whole
    assert len(arms) == len(plan.arms)
    for line, run in zip(arms, plan.runs):
        config = compose_training(shlex.split(line)[2:])
        assert config.data.path == "text [1]" and config.seed == 3
        assert config.schedule == run.config.schedule and config.mixers == run.config.mixers
