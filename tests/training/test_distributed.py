"""Two processes over gloo give the losses of one process for the same global batch."""

import subprocess
import sys
from pathlib import Path

import pytest

from zoo.files import read_metrics

ROOT = Path(__file__).resolve().parents[2]


def run(overrides, folder):
    command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return read_metrics(folder / "metrics.jsonl")


@pytest.mark.slow
def test_two_processes_equal_one(small_overrides, tmp_path):
    one = run([*small_overrides, "trainer.micro_batch_size=2"], tmp_path / "one")
    two = run([*small_overrides, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"], tmp_path / "two")
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for a, b in zip(one, two):
        for key in ("train/loss", "val/loss", "train/grad_norm"):
            assert (key in a) == (key in b)
            if key in a:
                assert b[key] == pytest.approx(a[key], rel=2e-4)
    assert [row["tokens"] for row in one] == [row["tokens"] for row in two]
