"""Callbacks: stop cleanly on a signal, stop on a non-finite loss, validate at the end of the budget."""

from __future__ import annotations

import math
import signal
from types import FrameType
from typing import Any

import lightning
from torch import Tensor

from zoo.data import TokenStore
from zoo.training.checkpointing import Checkpoints, StepEnd


class Interrupted(Exception):
    """The run was asked to stop by a signal; it has been saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}")
        self.number, self.step = number, step


class NonFiniteLoss(ValueError):
    """The loss is no longer a finite number."""


class StopOnSignal(StepEnd):
    """On SIGINT or SIGTERM finishes the optimizer step, saves ``last`` and raises Interrupted; a second Ctrl-C ends it.

    With several processes they agree on it every ``agree_every`` steps, since a signal may reach only one.
    """

    def __init__(self, checkpoints: Checkpoints, agree_every: int = 10) -> None:
        super().__init__(checkpoints.validate_every)
        self.checkpoints, self.agree_every = checkpoints, agree_every
        self.received: int | None = None
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Listen."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.previous[number] = signal.signal(number, self._receive)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Put the previous handlers back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def on_step_end(self, trainer: lightning.Trainer) -> None:
        """Save and stop."""
        stop = self.received is not None
        if trainer.world_size > 1:
            if trainer.global_step % self.agree_every:
                return
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop and trainer.global_step < trainer.max_steps:
            self.checkpoints.save_last(trainer)
            raise Interrupted(self.received or signal.SIGTERM, trainer.global_step)


class StopOnNonFinite(lightning.Callback):
    """Raises NonFiniteLoss before a bad loss can reach the weights on CPU, and a checkpoint anywhere.

    On an accelerator the loss of a step is read one step later, so that the host never waits for the device.
    """

    def __init__(self, store: TokenStore, length: int, checkpoints: Checkpoints) -> None:
        self.store, self.length, self.checkpoints = store, length, checkpoints
        self.starts: Tensor | None = None
        self.pending: tuple[int, Tensor, Tensor] | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember which tokens the loss comes from."""
        self.starts = batch["starts"]

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Read the loss of this step, or of the one before."""
        assert self.starts is not None
        earlier, self.pending = self.pending, (trainer.global_step, loss.detach(), self.starts)
        if loss.device.type == "cpu":
            self._check()
        elif earlier is not None:
            self.pending, latest = earlier, self.pending
            self._check()
            self.pending = latest

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Nothing non-finite is saved."""
        self._check()

    def _check(self) -> None:
        if self.pending is None:
            return
        (step, loss, starts), self.pending = self.pending, None
        value = float(loss)
        if math.isfinite(value):
            return
        names = sorted({n for s in starts.tolist() for n in self.store.documents_at(s, s + self.length + 1)})
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        shown = shown or "none, recall samples only"
        last = self.checkpoints.folder / "last.ckpt"
        good = f"last good checkpoint: {last}" if last.is_file() else "no checkpoint has been written yet"
        raise NonFiniteLoss(
            f"the loss is {value} at step {step}; documents of the batch: {shown}; {good}. "
            "Lower optimizer.lr, or look at these documents."
        )


class ValidateAtEnd(lightning.Callback):
    """Ends the run through Lightning's early stop, which validates once more, whatever the interval."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for the end at the last step."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True
