"""Checkpoints of training, written atomically: ``last``, ``best`` and every N steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins import TorchCheckpointIO

from zoo.config import ConfigError
from zoo.model.checkpoint import CHECKPOINTS, read_checkpoint, read_trained, write_checkpoint
from zoo.model.trained import Trained


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoint files of Lightning, written atomically: beside the target, synced to the disk, then renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes ``checkpoint`` to ``path``.

        Raises:
            CheckpointError: if the disk is full or not writable; the previous file stays.
        """
        write_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> Any:
        """Reads a checkpoint of plain data and tensors.

        Raises:
            CheckpointError: if the file is damaged.
        """
        return read_checkpoint(path)


def resume_checkpoint(run: Path) -> Path | None:
    """Returns the checkpoint from which a run resumes: ``last``, or else the latest; None if there is none yet.

    Raises:
        CheckpointError: if one of those is damaged.
    """
    if (last := run / CHECKPOINTS / "last.ckpt").is_file():
        return last
    found = {file: read_checkpoint(file)["global_step"] for file in (run / CHECKPOINTS).glob("*.ckpt")}
    return max(found, key=lambda file: found[file], default=None)


def read_resumed(checkpoint: Path) -> Trained:
    """Reads the metadata of the checkpoint from which a run resumes.

    Raises:
        ConfigError: if it has weights only.
        CheckpointError: if it is damaged, or training did not write it.
    """
    content = read_checkpoint(checkpoint)
    if "optimizer_states" not in content:
        raise ConfigError(f"{checkpoint} has weights only: start a new run from them with init=RUN_DIR.")
    return read_trained(content, checkpoint)


def remove_leftovers(folder: Path) -> None:
    """Deletes temporary files of saves that were killed."""
    for file in folder.glob(".*.ckpt.*.tmp"):
        file.unlink(missing_ok=True)


class StepEnd(lightning.Callback):
    """Base of callbacks that act once per optimizer step, after the validation of that step if there is one."""

    def __init__(self, validate_every: int) -> None:
        self.validate_every = validate_every

    def on_step_end(self, trainer: lightning.Trainer) -> None:
        """Acts between two optimizer steps, where a run may be saved and stopped."""

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ends a step that is not validated."""
        validates = trainer.global_step % self.validate_every == 0 or trainer.global_step == trainer.max_steps
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and not validates:
            self.on_step_end(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Ends a step that is validated."""
        self.on_step_end(trainer)


class Checkpoints(StepEnd):
    """Saves ``last`` every N steps and at the end, ``best`` after a better validation, and ``step-N`` permanently."""

    def __init__(self, folder: Path, every: int, keep_every: int | None, validate_every: int) -> None:
        super().__init__(validate_every)
        self.folder, self.every, self.keep_every = folder, every, keep_every
        self.best = float("inf")
        self.saved = -1
        self.validation_due = False

    def state_dict(self) -> dict[str, Any]:
        """Returns the best bits per byte so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best bits per byte so far."""
        self.best = state_dict["best"]

    def save(self, trainer: lightning.Trainer, name: str) -> None:
        """Writes the checkpoint ``name``."""
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")

    def save_last(self, trainer: lightning.Trainer) -> None:
        """Writes ``last``, unless this step has been written."""
        if self.saved != trainer.global_step:
            self.save(trainer, "last")
            self.saved = trainer.global_step

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Records whether the validation of this step is still to be done."""
        checkpoint["validation_due"] = self.validation_due

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves ``best`` if the validation was better, then what is due at this step."""
        self.validation_due = False
        metrics = trainer.callback_metrics
        value = float(metrics.get("val/bits_per_byte", metrics.get("val/recall_nll", float("nan"))))
        if value < self.best:
            self.best = value
            self.save(trainer, "best")
        super().on_validation_end(trainer, pl_module)

    def on_step_end(self, trainer: lightning.Trainer) -> None:
        """Saves what is due at this step."""
        if trainer.global_step % self.every == 0:
            self.save_last(trainer)
        if self.keep_every and trainer.global_step % self.keep_every == 0:
            self.save(trainer, f"step-{trainer.global_step}")

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Saves ``last`` at the end of the budget."""
        self.save_last(trainer)
