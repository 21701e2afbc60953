"""Checkpoints that are never half-written: last, best and every N steps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from zoo.model.checkpoint import CheckpointError, read_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, waits for the disk, then renames: a reader sees the old file or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to ``path``.

        Raises:
            CheckpointError: if the disk is full or not writable; the previous file stays.
        """
        path = Path(path)
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except (OSError, RuntimeError) as error:
            kept = f"the previous {path.name} is untouched" if path.is_file() else "no earlier one exists"
            raise CheckpointError(
                f"{path} could not be written ({error}); {kept}. Free some space, then continue with resume=."
            ) from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Read plain data and tensors only; CheckpointError if the file is damaged."""
        return read_checkpoint(path)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable, where the system can."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed save left behind."""
    for file in folder.glob(".*.ckpt.*.tmp"):
        file.unlink(missing_ok=True)


class Checkpoints(lightning.Callback):
    """Saves ``last`` every N steps and at the end, ``best`` after a better validation, ``step-N`` every ``keep_every``.

    Saves on the borders of optimizer steps only, after the validation of that step if there is one.
    """

    def __init__(self, folder: Path, every: int, keep_every: int | None, validate_every: int) -> None:
        self.folder, self.every, self.keep_every, self.validate_every = folder, every, keep_every, validate_every
        self.best = float("inf")
        self.saved = -1

    def state_dict(self) -> dict[str, Any]:
        """Best bits per byte so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best so far."""
        self.best = state_dict["best"]

    def save(self, trainer: lightning.Trainer, name: str) -> Path:
        """Write the checkpoint ``name``."""
        path = self.folder / f"{name}.ckpt"
        trainer.save_checkpoint(path)
        return path

    def save_last(self, trainer: lightning.Trainer) -> None:
        """Write ``last``, unless this step has been written."""
        if self.saved != trainer.global_step:
            self.save(trainer, "last")
            self.saved = trainer.global_step

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A resumed run has its step on disk already."""
        self.saved = trainer.global_step if trainer.global_step > 0 else -1

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Periodic saves."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not self._validates(trainer):
            self._periodic(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the best, and what is due at this step."""
        value = float(trainer.callback_metrics.get("val/bits_per_byte", float("nan")))
        if value < self.best:
            self.best = value
            self.save(trainer, "best")
        self._periodic(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The end of the budget."""
        self.save_last(trainer)

    def _validates(self, trainer: lightning.Trainer) -> bool:
        return trainer.global_step % self.validate_every == 0 or trainer.global_step == trainer.max_steps

    def _periodic(self, trainer: lightning.Trainer) -> None:
        if trainer.global_step % self.every == 0:
            self.save_last(trainer)
        if self.keep_every and trainer.global_step % self.keep_every == 0:
            self.save(trainer, f"step-{trainer.global_step}")
