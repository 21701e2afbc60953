"""Callbacks: stop cleanly on a signal, stop on a non-finite loss, validate at the end of the budget."""

from __future__ import annotations

import math
from typing import Any

import lightning
import torch
from torch import Tensor, distributed

from zoo.data import TokenStore
from zoo.training.checkpointing import Checkpoints, StepEnd
from zoo.training.signals import Interrupted, StopSignals


class NonFiniteLoss(ValueError):
    """Raised when the loss is no longer a finite number."""


class StopOnSignal(StepEnd):
    """After a signal, finishes the optimizer step, saves ``last`` and raises Interrupted; leaves a validation at once.

    Processes agree on it, since a signal may reach only one, or each at another time: after each batch all send what
    they have received, and read what was sent one batch before, so that none waits for another.
    """

    def __init__(self, checkpoints: Checkpoints, signals: StopSignals, max_steps: int) -> None:
        super().__init__(checkpoints.validate_every)
        self.checkpoints, self.signals, self.max_steps = checkpoints, signals, max_steps
        self._group: Any = None
        self._sent: tuple[Tensor, Any] | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Defers signals from here on, since there is now something to save."""
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo")  # the host's own, so that it waits for no device
        self.signals.defer()

    def on_step_end(self, trainer: lightning.Trainer) -> None:
        """Saves and stops, if a signal has been received."""
        number = self._agreed(trainer)
        if number and trainer.global_step < self.max_steps:
            self._stop(trainer, number)

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """After a signal, saves the step, whose validation a resumed run does first, and stops."""
        if number := self._agreed(trainer):
            self.checkpoints.validation_due = True
            self._stop(trainer, number)

    def _stop(self, trainer: lightning.Trainer, number: int) -> None:
        self.checkpoints.save_last(trainer)
        raise Interrupted(number, trainer.global_step)

    def _agreed(self, trainer: lightning.Trainer) -> int:
        """The signal that all stop for, 0 for none."""
        received = self.signals.received or 0
        if trainer.world_size == 1:
            return received
        told = torch.tensor(received)
        work = distributed.all_reduce(told, distributed.ReduceOp.MAX, group=self._group, async_op=True)
        earlier, self._sent = self._sent, (told, work)
        if earlier is None:
            return 0
        earlier[1].wait()
        return int(earlier[0])


class ValidateFirst(lightning.Callback):
    """Runs the validation in which a run was stopped before training goes on.

    It must follow the callbacks that watch the validation.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Validates as Lightning does after a step, from the first batch on."""
        loop = trainer.fit_loop.epoch_loop.val_loop
        loop.restarting = False
        trainer.validating = True
        loop.run()
        trainer.training = True
        trainer.should_stop = trainer.global_step >= self.max_steps


class StopOnNonFinite(lightning.Callback):
    """Raises NonFiniteLoss before a bad loss can reach the weights on a CPU, and a checkpoint anywhere.

    On an accelerator the loss of a step is read one step later, so that the host never waits for the device.
    """

    def __init__(self, store: TokenStore, length: int, checkpoints: Checkpoints) -> None:
        self.store, self.length, self.checkpoints = store, length, checkpoints
        self.starts: Tensor | None = None
        self.pending: tuple[int, Tensor, Tensor] | None = None

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remembers the tokens of the batch, for the message."""
        self.starts = batch["starts"]

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        """Checks the loss of this step on a CPU, and of the step before elsewhere."""
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
        """Checks the last loss, so that nothing non-finite is saved."""
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
        """Asks Lightning to stop at the last step."""
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True
