"""What a run writes, and what it refuses."""

import csv
import errno
import json
import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
from filelock import FileLock
from transformers import AutoTokenizer

import zoo
from tests.tiers import in_ci
from zoo.config import ConfigError
from zoo.files import read_metrics
from zoo.model import CheckpointError
from zoo.model.from_config import Architecture, decoder_config
from zoo.options.budget import step_budget
from zoo.training.callbacks import NonFiniteLoss
from zoo.training.checkpointing import AtomicCheckpointIO
from zoo.training.run import train

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_folder_holds_all_that_is_promised(small, tmp_path, capfd):
    folder = tmp_path / "run"
    train(small("trainer.keep_every=5"), folder)
    assert capfd.readouterr().out.count("\nsplits    cut from the documents, 90/5/5\n") == 1
    data = json.loads((folder / "data.json").read_text())
    assert data["splits"] == "cut from the documents, 90/5/5" and set(data["stores"]) == {"train", "validation"}
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 21))
    assert [row["step"] for row in rows if "val/loss" in row] == [10, 20]
    with (folder / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert {p.stem for p in (folder / "checkpoints").glob("*.ckpt")} == {
        "last",
        "best",
        *(f"step-{n}" for n in (5, 10, 15, 20)),
    }
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"].startswith(torch.__version__[:4])
    assert set(json.loads((folder / "git.json").read_text())) == {"commit", "branch", "dirty"}
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    decoder = zoo.load(folder)
    assert decoder.config.vocab_size == len(tokenizer)
    assert decoder.generate([tokenizer("the")["input_ids"]], 3, temperature=0)


def test_validation_numbers_are_those_of_the_data(small, tmp_path):
    folder = tmp_path / "run"
    train(small(), folder)
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "val/loss" in row]
    for row in rows:
        assert row["val/perplexity"] == pytest.approx(math.exp(row["val/loss"]))
        assert row["val/bits_per_byte"] == pytest.approx(
            row["val/loss"] / math.log(2), rel=0.05
        )  # bytes, but for separators
    assert rows[-1]["val/loss"] < rows[0]["val/loss"]


def test_a_non_finite_loss_names_step_documents_and_checkpoint(small, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(NonFiniteLoss) as stopped:
        train(small("optimizer.lr=1e30", "trainer.checkpoint_every=1", "optimizer.warmup_steps=1"), folder)
    text = str(stopped.value)
    assert "the loss is nan at step" in text and ".txt" in text
    step = int(text.split("at step ")[1].split(";")[0])
    if step > 0:
        assert "last.ckpt" in text
        state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["global_step"] <= step


def test_two_processes_cannot_have_one_folder(small, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lock = f"lock = FileLock({str(folder / '.lock')!r}); lock.acquire()"
    code = f"from filelock import FileLock; {lock}; print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="is in use by another process"):
            train(small(), folder)
        holder.communicate(b"\n")
    train(small(), folder)


def test_a_new_run_does_not_overwrite_an_old_one(small, tmp_path):
    train(small(), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"already holds a run: set .* continue it with: python .*train.py resume="):
        train(small(), tmp_path / "run")


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def fails(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(CheckpointError, match=r"could not be written .*No space left.*previous last.ckpt is untouched"):
        io.save_checkpoint({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["last.ckpt"]


@pytest.mark.slow
def test_a_file_size_limit_ends_the_run_with_one_clear_line(small_overrides, tmp_path):
    folder = tmp_path / "run"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = [sys.executable, "train.py", *small_overrides, f"hydra.run.dir={folder}", "model.width=64"]
    place = {**os.environ, "GIT_DIR": str(tmp_path)}  # no git.diff of this checkout, which may be longer than the limit
    done = subprocess.run(command, cwd=ROOT, env=place, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2
    assert ".ckpt could not be written" in done.stderr and "Traceback" not in done.stderr
    assert not list((folder / "checkpoints").iterdir())


def budget(config):
    return step_budget(config.trainer, config.data.length)


def test_budgets(small):
    assert budget(small()) == 20
    assert budget(small("trainer.max_tokens=1000")) == math.ceil(1000 / (4 * 32))
    with pytest.raises(ConfigError, match="at least 1"):
        budget(small("trainer.max_tokens=0"))
    with pytest.raises(ConfigError, match="no budget"):
        budget(small("trainer.max_steps=null"))
    with pytest.raises(ConfigError, match="at least 1"):
        budget(small("trainer.max_steps=0"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.width=30", "model.heads=4"], r"width=30 is not divisible by heads=4: .* or set head_dim"),
        (["attention=gqa", "model.heads=4", "mixers.gqa.kv_heads=3"], r"heads=4 is not divisible by kv_heads=3"),
        (["schedule.pattern=3xlightnin+softmax"], r"unknown attention 'lightnin'.*lightning"),
        (["schedule.patch=7:softmax"], r"index 7 is outside the 2 layers"),
        (["model.style=gpt"], r"model.style=gpt: .*llama, transnormer"),
        (["mixers.lightning.decay=fast"], r"decay='fast'.*transnormer, paper"),
        *in_ci(
            (["data.path=null"], r"data.path"),
            (["data.path=/does/not/exist"], r"/does/not/exist"),
            (["trainer.batch_size=3", "trainer.micro_batch_size=2"], r"batch_size=3 is not divisible"),
            (["optimizer.name=sgd"], r"optimizer.name=sgd: .*adamw, muon"),
            (["optimizer.schedule=linear"], r"optimizer.schedule=linear: .*cosine"),
            (["trainer.strategy=zero"], r"trainer.strategy=zero: .*ddp"),
            (["trainer.strategy=fsdp"], r"optimizer=muon needs whole"),
        ),
    ],
)
def test_bad_input_is_a_clear_error(small, tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        train(small(*overrides), tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoints/*.ckpt"))


def test_the_schedule_reaches_the_layers(small):
    patched = Architecture.of(small("schedule=hybrid_3to1", "model.depth=5", "schedule.patch=-1:mqa"))
    assert patched.layers == ["lightning", "lightning", "lightning", "softmax", "mqa"]
    named = small(
        "attention=softmax",
        "mixers.softmax.rope_theta=null",
        "+mixers.mine={name: lightning, gate: none}",
        "schedule.pattern=softmax+mine",
    )
    config = decoder_config(Architecture.of(named), 10)
    assert config.mixers["mine"] == {"name": "lightning", "gate": "none"}
    assert config.mixers["softmax"]["rope_theta"] is None and config.mixers["softmax"]["gate"] == "none"
    assert list(config.mixers) == ["softmax", "mine"]


@pytest.mark.slow
def test_loggers_on_request(small, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(small("logger=tensorboard"), tmp_path / "a")
    assert list((tmp_path / "a" / "tensorboard").glob("events.*"))
    train(small("logger=wandb", "logger.wandb.mode=offline"), tmp_path / "b")
    assert list((tmp_path / "b" / "wandb").glob("offline-run-*")) and wandb.run is None
    train(small("logger=wandb", "logger.wandb.mode=disabled"), tmp_path / "c")
    assert read_metrics(tmp_path / "c" / "metrics.jsonl")


@pytest.mark.slow
def test_command_line_errors_are_one_line(small_overrides, tmp_path):
    command = [
        sys.executable,
        "train.py",
        *small_overrides,
        "model.width=30",
        "model.heads=4",
        f"hydra.run.dir={tmp_path / 'r'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: mixers.lightning: width=30")
        and done.stderr.count("\n") == 1
    )
    assert not (tmp_path / "r").exists()
    done = subprocess.run([sys.executable, "train.py", "attention=lightnin"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "did you mean lightning?" in done.stderr


@pytest.mark.slow
def test_options_of_memory_and_compilation_change_no_number(small, tmp_path):
    train(small(), tmp_path / "plain")
    train(small("trainer.checkpoint_activations=true"), tmp_path / "checkpointed")
    plain, other = (read_metrics(tmp_path / n / "metrics.jsonl")[-1] for n in ("plain", "checkpointed"))
    assert plain["val/loss"] == pytest.approx(other["val/loss"], rel=1e-5)


def test_lock_is_free_after_a_run(small, tmp_path):
    train(small(), tmp_path / "run")
    FileLock(tmp_path / "run" / ".lock").acquire(timeout=0)
