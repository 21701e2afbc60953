"""A run that was stopped and continued is the run that was never stopped, bit for bit."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiers import in_ci
from zoo.config import ConfigError
from zoo.files import read_metrics
from zoo.model import CheckpointError
from zoo.options.budget import step_budget
from zoo.options.continued import resumed_config
from zoo.training.module import LanguageModule
from zoo.training.run import train
from zoo.training.signals import Interrupted

ROOT = Path(__file__).resolve().parents[2]
EXACT = ("step", "tokens", "train/loss", "train/bits_per_byte", "train/grad_norm", "train/lr", "val/loss")


def losses(folder):
    return [[row.get(key) for key in EXACT] for row in read_metrics(folder / "metrics.jsonl")]


def weights(folder, name="last"):
    return torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def assert_same_run(a, b):
    assert losses(a) == losses(b)
    first, second = weights(a), weights(b)
    assert all(torch.equal(first[key], second[key]) for key in first)


def stop_at(monkeypatch, micro_step, number):
    """Send this process a signal in the middle of a training step."""
    inner = LanguageModule.training_step

    def step(self, batch, batch_idx):
        if batch_idx == micro_step:
            os.kill(os.getpid(), number)
        return inner(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModule, "training_step", step)


@pytest.mark.parametrize(
    ("overrides", "stop", "workers"),
    [
        *in_ci(
            ([], 9, 0),
            (["trainer.micro_batch_size=1"], 29, 0),
            (["attention=softmax", "optimizer=adamw", "optimizer.schedule=wsd"], 6, 2),
        ),
        (["schedule.pattern=lightning+gqa", "data.isolate_documents=true", "trainer.log_every=4"], 13, 1),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, *in_ci(signal.SIGINT)])
def test_stopped_and_resumed_is_never_stopped(small, tmp_path, monkeypatch, overrides, stop, workers, number):
    train(small(*overrides), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, stop, number)
        with pytest.raises(Interrupted) as stopped:
            train(small(*overrides), tmp_path / "parts")
    assert stopped.value.number == number
    saved = torch.load(tmp_path / "parts" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < saved == stopped.value.step < 20
    options = [f"resume={tmp_path / 'parts'}", f"data.num_workers={workers}"]
    train(resumed_config(small(*options), options), tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


KILLED = """
import os, signal, sys, torch
save, count = torch.save, 0
def half(content, file):
    global count
    count += 1
    if count == 3:
        import io
        whole = io.BytesIO(); save(content, whole)
        file.write(whole.getvalue()[: whole.tell() // 2]); file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, file)
torch.save = half
sys.argv = ["train.py", *sys.argv[1:]]
import runpy
runpy.run_path("train.py", run_name="__main__")
"""


@pytest.mark.slow
def test_kill_in_the_middle_of_a_save_loses_nothing_that_was_saved(small, small_overrides, tmp_path):
    train(small(), tmp_path / "whole")
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, *small_overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(folder.glob("checkpoints/.*.tmp")), "the save was not cut in the middle"
    resume = [sys.executable, "train.py", f"resume={folder}"]
    done = subprocess.run(resume, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", folder)
    assert not list(folder.glob("checkpoints/.*.tmp"))


@pytest.mark.slow
def test_a_finished_run_can_be_given_a_larger_budget(small, tmp_path):
    train(small("optimizer.schedule=constant", "trainer.max_steps=10"), tmp_path / "parts")
    options = [f"resume={tmp_path / 'parts'}", "trainer.max_steps=20"]
    train(resumed_config(small(*options), options), tmp_path / "parts")
    train(small("optimizer.schedule=constant"), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resume_refuses_what_would_not_be_exact(small, text_folder, tmp_path):
    folder, texts = tmp_path / "run", tmp_path / "texts"
    shutil.copytree(text_folder, texts)
    train(small(f"data.path={texts}"), folder)
    options = [f"resume={folder}", "optimizer.lr=1"]
    with pytest.raises(ConfigError, match=r"optimizer.lr cannot be changed.*trainer.max_steps"):
        resumed_config(small(*options), options)
    with pytest.raises(ConfigError, match=r"has 20 steps, its budget is 20"):
        train(resumed_config(small(f"resume={folder}"), []), folder)
    for file in texts.iterdir():
        file.write_text("another " + file.read_text(), encoding="utf-8")
    options = [f"resume={folder}", "trainer.max_steps=30"]
    with pytest.raises(CheckpointError, match="has changed since its checkpoint"):
        train(resumed_config(small(*options), options), folder)


def test_either_budget_can_take_the_place_of_the_other(small, tmp_path):
    folder = tmp_path / "run"
    train(small("trainer.max_tokens=256"), folder)
    for option, steps in (("trainer.max_steps=7", 7), ("trainer.max_tokens=640", 5)):
        options = [f"resume={folder}", option]
        config = resumed_config(small(*options), options)
        assert step_budget(config.trainer, config.data.length) == steps


@pytest.mark.slow
def test_resume_names_what_is_missing_or_damaged(small, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.*does not exist"):
        resumed_config(small(f"resume={tmp_path / 'nowhere'}"), [])
    folder = tmp_path / "run"
    train(small(), folder)
    file = folder / "checkpoints" / "last.ckpt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    config = resumed_config(small(f"resume={folder}", "trainer.max_steps=30"), ["trainer.max_steps=30"])
    with pytest.raises(CheckpointError, match=r"last.ckpt cannot be read as a checkpoint"):
        train(config, folder)
    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"has no config.yaml.*start it again with its own command"):
        resumed_config(small(f"resume={folder}"), [])


@pytest.mark.slow
@pytest.mark.parametrize("kept", [["best"], ["best", "step-15"]])
def test_a_run_that_has_no_last_checkpoint_goes_on_from_the_latest_other(small, tmp_path, kept):
    options = ["trainer.keep_every=15", "optimizer.schedule=constant"]
    train(small(*options), tmp_path / "whole")
    train(small(*options, "trainer.max_steps=16"), tmp_path / "parts")
    for file in (tmp_path / "parts" / "checkpoints").iterdir():
        if file.stem not in kept:
            file.unlink()
    resume = [f"resume={tmp_path / 'parts'}", "trainer.max_steps=20"]
    train(resumed_config(small(*resume), resume), tmp_path / "parts")
    trained = [[row for row in losses(tmp_path / n) if row[2] is not None] for n in ("whole", "parts")]
    assert trained[0] == trained[1]


@pytest.mark.slow
def test_a_run_without_a_checkpoint_starts_again_in_its_folder(small, tmp_path):
    train(small(), tmp_path / "whole")
    folder = tmp_path / "killed"
    train(small("trainer.max_steps=3", "trainer.checkpoint_every=1000"), folder)
    shutil.rmtree(folder / "checkpoints")
    options = [f"resume={folder}", "trainer.max_steps=20"]
    train(resumed_config(small(*options), options), folder)
    assert losses(tmp_path / "whole") == losses(folder)


@pytest.mark.slow
def test_the_command_of_a_run_may_be_repeated_when_it_is_resumed(small, small_overrides, tmp_path):
    folder, options = tmp_path / "run", ["optimizer.lr=0.01", "attention=softmax", "schedule=hybrid_1to1"]
    train(small(*options, "trainer.max_steps=3"), folder)
    resume = f"resume={folder}"
    overrides = [*small_overrides, *options, "trainer.max_steps=4", resume]
    assert resumed_config(small(*options, "trainer.max_steps=4", resume), overrides).trainer.max_steps == 4
    for other in ("optimizer.lr=0.02", "attention=lightning", "optimizer=adamw", "seed=1"):
        changed = [*overrides, other]
        with pytest.raises(ConfigError, match="cannot be changed by a resumed run, which has"):
            resumed_config(small(*options, other, resume), changed)


@pytest.mark.slow
def test_rows_after_the_checkpoint_are_dropped_on_resume(small, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 9, signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(small(), folder)
    lines = folder / "metrics.jsonl"
    lines.write_text(lines.read_text() + '{"step": 11, "train/loss": 9.0}\n{"step": 12, "tra', encoding="utf-8")
    train(resumed_config(small(f"resume={folder}"), []), folder)
    steps = [row["step"] for row in read_metrics(lines) if "train/loss" in row]
    assert steps == list(range(1, 21))
