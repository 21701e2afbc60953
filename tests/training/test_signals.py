"""A signal, whenever it comes, loses nothing: the run continues to where it would have come without it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.tiers import in_ci
from tests.training.test_resume import assert_same_run
from zoo.files import read_metrics
from zoo.options.continued import resumed_config
from zoo.training.callbacks import StopOnNonFinite
from zoo.training.checkpointing import AtomicCheckpointIO
from zoo.training.module import LanguageModule
from zoo.training.run import train
from zoo.training.signals import Interrupted, StopSignals

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import runpy, sys, time
from zoo.training.module import LanguageModule
step = LanguageModule.training_step
def slow(self, batch, batch_idx):
    time.sleep(0.05)
    return step(self, batch, batch_idx)
LanguageModule.training_step = slow
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""


def start(*arguments, program=("-c", SLOW)):
    command = [sys.executable, *program, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def wait_for(condition, process):
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def trained(folder):
    return sum("train/loss" in row for row in read_metrics(folder / "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "workers", "micro"),
    [(signal.SIGINT, 4, 1), (signal.SIGTERM, 2, 4), (signal.SIGINT, 0, 4), (signal.SIGTERM, 4, 1)],
)
def test_a_signal_to_the_process_group_saves_with_any_loader(small, small_overrides, tmp_path, number, workers, micro):
    options = [f"trainer.micro_batch_size={4 // micro}", "trainer.checkpoint_every=1000"]
    process = start(*small_overrides, *options, f"data.num_workers={workers}", f"hydra.run.dir={tmp_path / 'parts'}")
    wait_for(lambda: trained(tmp_path / "parts") >= 3, process)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors and f"resume={tmp_path / 'parts'}" in errors
    train(resumed_config(small(f"resume={tmp_path / 'parts'}"), []), tmp_path / "parts")
    train(small(*options), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def signal_in(monkeypatch, owner, name, number, at=1):
    """Send this process a signal in the ``at``-th call of a method; returns the list of calls."""
    inner, calls = getattr(owner, name), []

    def method(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return inner(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, method)
    return calls


@pytest.mark.parametrize(("at", "step"), [*in_ci((1, 10), (3, 10)), (6, 20)])
def test_a_validation_is_left_within_a_batch_and_done_when_the_run_goes_on(small, tmp_path, monkeypatch, at, step):
    options = ["data.val_tokens=640", "trainer.batch_size=4"]  # five batches
    with monkeypatch.context() as patch:
        calls = signal_in(patch, LanguageModule, "validation_step", signal.SIGINT, at)
        with pytest.raises(Interrupted) as stopped:
            train(small(*options), tmp_path / "parts")
        assert stopped.value.step == step and len(calls) == at
    train(resumed_config(small(f"resume={tmp_path / 'parts'}"), []), tmp_path / "parts")
    train(small(*options), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    saved = [torch.load(tmp_path / n / "checkpoints" / "last.ckpt", weights_only=True) for n in ("whole", "parts")]
    assert saved[0]["global_step"] == saved[1]["global_step"] == 20
    assert not saved[0]["validation_due"] and not saved[1]["validation_due"]


@pytest.mark.slow
def test_a_save_that_a_signal_falls_into_is_finished(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        calls = signal_in(patch, AtomicCheckpointIO, "save_checkpoint", signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM at step 5"):
            train(small(), tmp_path / "parts")
        assert len(calls) == 1
    train(resumed_config(small(f"resume={tmp_path / 'parts'}"), []), tmp_path / "parts")
    train(small(), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_in_the_last_save_changes_nothing(small, tmp_path, monkeypatch):
    calls = signal_in(monkeypatch, AtomicCheckpointIO, "save_checkpoint", signal.SIGTERM, at=6)
    train(small(), tmp_path)
    assert len(calls) == 6 and trained(tmp_path) == 20


@pytest.mark.slow
def test_a_run_stopped_before_its_first_step_starts_again_in_its_folder(small, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_in(patch, StopOnNonFinite, "__init__", signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM before the first step"):
            train(small(), tmp_path / "parts")
    assert (tmp_path / "parts" / "config.yaml").is_file()
    train(resumed_config(small(f"resume={tmp_path / 'parts'}"), []), tmp_path / "parts")
    train(small(), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


STUCK = """
import ctypes, signal, sys, threading
import zoo.training.signals as signals
signals.PATIENCE = signals.AGAIN = 0.3
with signals.StopSignals() as stop:
    if sys.argv[1] == "deferred":
        stop.defer()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # so that it does not wake the call below
    threading.Timer(1.0, print, ("ready",), {"flush": True}).start()  # when the call below has begun
    ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["preparing", "deferred"])
def test_a_process_in_compiled_code_ends_after_a_while_or_after_a_second_ctrl_c(mode):
    process = start(mode, program=("-c", STUCK))
    assert process.stdout.readline() == "ready\n"
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    if mode == "deferred":
        time.sleep(1.0)
        os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and time.monotonic() - began < 30
    assert ("interrupted" if mode == "deferred" else "stopped by SIGINT before the first step") in errors


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with StopSignals() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.received == signal.SIGHUP
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
