"""The programs as they are typed, beside a package that lies in the current folder."""

import json
import os
import subprocess
import sys

import pytest

from tests.plugins.outside import write_package
from zoo.paths import ROOT

SMALL = ("experiment=tiny", "data.length=32", "model.width=32", "trainer.max_steps=1", "trainer.accelerator=cpu")
CHOSEN = ("data=outside_counting", "optimizer=outside_sgd", "logger=outside_lines")
PLUGINS = "plugins=[zoo_outside]"


def typed(folder, program, *words):
    """What a program says, and its exit status; it knows this project by its own place alone."""
    command = [sys.executable, str(ROOT / program), *map(str, words)]
    known = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
    return subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": known}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def beside(tmp_path_factory):
    """A folder with the package in it."""
    return write_package(tmp_path_factory.mktemp("beside"))


@pytest.fixture(scope="module")
def swept(beside):
    """A sweep of two runs, trained and evaluated; every program is a process of its own, of many seconds."""
    arms = "attention=outside_linear,softmax", "seed=0", "sweep.tasks=[outside_copy]", "task.tokens=6"
    words = "-m", "sweep=mixers", PLUGINS, *arms, *CHOSEN, *SMALL, f"data.cache_dir={beside / 'cache'}"
    done = typed(beside, "train.py", *words, "hydra.sweep.dir=swept")
    assert done.returncode == 0, done.stdout + done.stderr
    return beside / "swept"


@pytest.fixture(scope="module")
def trained(beside):
    """What a console script says that trains a run in the folder ``run``; its own folder is the first of the path."""
    script = beside / "bin" / "attention-zoo"
    script.parent.mkdir()
    script.write_text("from zoo.commands import main\nmain()\n")
    train = ["train", PLUGINS, "attention=outside_linear", *CHOSEN, *SMALL, f"data.cache_dir={beside / 'cache'}"]
    done = typed(beside, script, *train, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_one_of_each_is_swept_and_evaluated_without_a_change_inside(swept):
    runs = sorted((swept / "arms").glob("*/seed-0"))
    assert [run.parent.name for run in runs] == ["outside_linear", "softmax"]
    for run in runs:
        result = json.loads((run / "eval" / "outside_copy-tokens6.json").read_text())
        assert result["protocol"] == {"tokens": 6} and result["results"][0]["task"] == "outside_copy"
        assert (run / "lines.txt").is_file()


@pytest.mark.slow
def test_one_of_each_is_reported_without_a_change_inside(beside, swept):
    refused = typed(beside, "scripts/report.py", "swept")
    assert refused.returncode == 2 and "this run needs plugins=[zoo_outside]: add it" in refused.stderr
    report = typed(beside, "scripts/report.py", "swept", PLUGINS)
    assert report.returncode == 0, report.stderr
    assert "outside_linear" in (swept / "report" / "report.md").read_text()


@pytest.mark.slow
def test_a_run_is_trained_from_a_console_script(trained):
    assert "'plugins=[zoo_outside]'" in trained.splitlines()[-1]  # the command that evaluates it can be pasted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("eval.py", ("run=run", "task=perplexity", "task.max_documents=1", "device=cpu")),
        ("scripts/generate.py", ("run=run", "prompt=one", "max_new_tokens=1", "device=cpu")),
        ("train.py", ("resume=run", "trainer.max_steps=2")),
    ],
)
def test_a_run_is_read_by_every_program_that_is_told_its_plugin(beside, trained, program, words):
    refused = typed(beside, program, *words)
    assert (refused.returncode, refused.stderr) == (2, "error: this run needs plugins=[zoo_outside]: add it.\n")
    done = typed(beside, program, *words, PLUGINS)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_name_that_cannot_be_imported_ends_the_program_before_any_work(tmp_path):
    done = typed(tmp_path, "train.py", "plugins=[zoo_nowhere]", "hydra.run.dir=run")
    assert done.returncode == 2 and done.stderr.startswith("error: plugins=[zoo_nowhere]: there is no package")
    assert list(tmp_path.iterdir()) == []
