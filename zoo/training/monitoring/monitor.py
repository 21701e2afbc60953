"""Training metrics and the progress display."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zoo.costs.machine import peak_flops
from zoo.files import read_metrics
from zoo.training.monitoring.meter import metrics_of


class Monitor(lightning.Callback):
    """Records training metrics every ``log_every`` steps.

    They are loss, bits per byte, nats per answer, tokens/s, MFU where the peak is known, learning rate and gradient
    norm. Sums run over all tokens since the last record and are part of the checkpoint, so a resumed run records the
    same. Time spent in validation does not count.
    """

    def __init__(self, log_every: int, train_flops_per_token: float) -> None:
        self.log_every, self.train_flops_per_token = log_every, train_flops_per_token
        self.latest: dict[str, float] = {}
        self._rate = 0.0
        self._restored: list[float] | None = None
        self._since, self._steps, self._paused = time.perf_counter(), 0, 0.0

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Adds the sums of all ranks since the last record to a checkpoint."""
        checkpoint["meter"] = pl_module.reduce(pl_module.train_meter.sums.clone()).tolist()

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Restores the sums, on rank 0."""
        self._restored = checkpoint["meter"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Starts the clock."""
        if self._restored is not None and trainer.is_global_zero:
            pl_module.train_meter.restore(self._restored)
        self._since, self._steps, self._paused = time.perf_counter(), 0, 0.0

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Stops the clock."""
        self._validation_since = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Restarts the clock."""
        self._paused += time.perf_counter() - self._validation_since
        self.latest |= {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Stores the learning rate of this step, which the schedule changes before the step ends."""
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records the metrics when they are due."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._steps += 1
        if trainer.global_step % self.log_every and trainer.global_step != trainer.max_steps:
            return
        metrics = {f"train/{k}": v for k, v in metrics_of(pl_module.reduce(pl_module.train_meter.take())).items()}
        seconds = time.perf_counter() - self._since - self._paused
        rate = self._steps * pl_module.trained.tokens_per_step / max(seconds, 1e-9)
        metrics["train/tokens_per_second"] = rate
        peak = peak_flops(pl_module.device)
        if peak is not None:
            metrics["train/mfu"] = rate * self.train_flops_per_token / (peak * trainer.world_size)
        metrics["train/lr"] = self._rate
        if pl_module.grad_norm is not None:
            metrics["train/grad_norm"] = float(pl_module.grad_norm)
        pl_module.record(metrics)
        self.latest |= metrics
        self._since, self._steps, self._paused = time.perf_counter(), 0, 0.0


def describe(metrics: dict[str, float]) -> str:
    """Formats the latest metrics as short text."""
    parts = []
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.3f}  bits/byte {metrics['train/bits_per_byte']:.3f}")
    if "train/recall_nll" in metrics:
        parts.append(f"recall {metrics['train/recall_nll']:.2f} nats")
    if "train/tokens_per_second" in metrics:
        parts.append(f"{metrics['train/tokens_per_second']:,.0f} tokens/s")
    if "train/mfu" in metrics:
        parts.append(f"MFU {metrics['train/mfu']:.1%}")
    if "val/bits_per_byte" in metrics:
        parts.append(f"held-out {metrics['val/bits_per_byte']:.3f}")
    if "val/recall_accuracy" in metrics:
        parts.append(f"recall {metrics['val/recall_accuracy']:.1%}")
    return "  ".join(parts)


def held_out(run: Path) -> str:
    """Describes the last validation of a run in words; empty if it has none."""
    rows = [row for row in read_metrics(run / "metrics.jsonl") if any(key.startswith("val/") for key in row)]
    if not rows:
        return ""
    row, parts = rows[-1], []
    if "val/loss" in row:
        parts += [f"loss {row['val/loss']:.4f}", f"bits/byte {row['val/bits_per_byte']:.4f}"]
        parts += [f"perplexity {row['val/perplexity']:.2f}"]
    if "val/recall_accuracy" in row:
        parts += [f"recall {row['val/recall_accuracy']:.1%}"]
    return "  ".join([*parts, f"(step {row['step']})"])


class ProgressDisplay(lightning.Callback):
    """Progress bar on a terminal, a line per record elsewhere; must follow the Monitor that it reads."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.started, self.first = time.perf_counter(), 0

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Shows the bar."""
        self.started, self.first = time.perf_counter(), trainer.global_step
        if not self.console.is_terminal:
            return
        columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=self.console)
        self.task = self.bar.add_task("train", total=trainer.max_steps, completed=trainer.global_step, text="")
        self.bar.start()

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advances the bar, or prints a new record."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        if self.bar is not None:
            self.bar.update(self.task, completed=step, text=describe(self.monitor.latest))
        elif step % self.monitor.log_every == 0 or step == trainer.max_steps:
            left = (time.perf_counter() - self.started) / max(step - self.first, 1) * (trainer.max_steps - step)
            text = describe(self.monitor.latest)
            print(f"step {step}/{trainer.max_steps}  {text}  {left:.0f} s left", file=sys.stderr, flush=True)

    @rank_zero_only
    def teardown(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Removes the bar, also after an error."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
