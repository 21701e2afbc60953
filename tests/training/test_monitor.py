"""Numbers that are logged are those of their step, whichever file they stand in."""

import csv

import lightning
import pytest
import torch

from tests.tiers import in_ci
from zoo.files import read_metrics
from zoo.training import run as runs
from zoo.training.run import train

SCHEDULES = [("cosine", 4), ("wsd", 0), ("constant", 3)]


class Spy(lightning.Callback):
    """What each optimizer step really used."""

    def __init__(self):
        self.rates, self.norms = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        gradients = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack(gradients).norm()))


@pytest.mark.parametrize(("schedule", "warmup"), SCHEDULES)
@pytest.mark.parametrize("micro", [*in_ci(1), 4])
def test_rate_norm_tokens_and_loss_are_those_of_their_step(small, tmp_path, monkeypatch, schedule, warmup, micro):
    spy, folder = Spy(), tmp_path / "run"
    monkeypatch.setattr(runs, "sharing_callbacks", lambda options: [spy])
    options = [f"optimizer.schedule={schedule}", f"optimizer.warmup_steps={warmup}", "logger=tensorboard"]
    train(small(*options, f"trainer.micro_batch_size={micro}", "trainer.max_steps=6"), folder)
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and len(spy.rates) == 6
    assert [row["train/lr"] for row in rows] == spy.rates
    assert [row["train/grad_norm"] for row in rows] == pytest.approx(spy.norms, rel=1e-4)
    assert [row["tokens"] for row in rows] == [4 * 32 * step for step in range(1, 7)]
    with (folder / "metrics.csv").open() as file:
        table = [float(row["train/lr"]) for row in csv.DictReader(file) if row["train/lr"]]
    assert table == spy.rates
    assert _tensorboard(folder / "tensorboard", "train/lr") == pytest.approx(dict(enumerate(spy.rates, 1)))


def _tensorboard(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.mark.slow
def test_the_loss_of_a_step_does_not_depend_on_its_micro_batches(small, tmp_path):
    for micro in (1, 4):
        train(small(f"trainer.micro_batch_size={micro}", "trainer.max_steps=3"), tmp_path / str(micro))
    rows = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("1", "4"))
    one, four = ([row["train/loss"] for row in found if "train/loss" in row] for found in rows)
    assert one == pytest.approx(four, rel=1e-5)
