"""Loggers that are chosen by name: Weights & Biases and TensorBoard.

Lightning is imported only where one is started.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.config import ConfigError
from zoo.options.groups.trainer import WandbOptions
from zoo.registry import LOGGERS

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

WANDB_MODES = ("online", "offline", "disabled", "shared")


@LOGGERS.register("wandb", WandbOptions)
def weights_and_biases(folder: Path, settings: dict[str, Any], mode: str | None = None, **options: Any) -> Logger:
    """Logger of Weights & Biases; a run that is resumed in the same folder continues its run there.

    Args:
        folder: folder of the run.
        settings: the run's configuration, which is shown.
        mode: ``online``, ``offline`` or ``disabled``; None for the environment variable WANDB_MODE, or else ``online``.
        options: keywords of Lightning's WandbLogger.

    Raises:
        ConfigError: if the mode is none of wandb's.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    chosen = wandb.Settings(mode=wandb_mode(mode))  # type: ignore[arg-type]
    identity = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]  # folders of sweeps are called 0, 1, ...
    options = {"id": identity, "resume": "allow", "name": folder.name, **options}

    class Run(WandbLogger):
        def finalize(self, status: str) -> None:
            super().finalize(status)
            if self._experiment is not None:  # else the next run of this process would log into this one
                self._experiment.finish(exit_code=0 if status == "success" else 1)

    return Run(save_dir=folder, config=settings, settings=chosen, **options)


def wandb_mode(asked: str | None) -> str:
    """Returns the mode of wandb: ``logger.wandb.mode``, else the environment variable WANDB_MODE, else ``online``.

    Raises:
        ConfigError: if it is none of wandb's.
    """
    mode = asked or os.environ.get("WANDB_MODE") or "online"
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # older names, which wandb takes too
    if mode not in WANDB_MODES:
        name = "logger.wandb.mode" if asked else "WANDB_MODE"
        raise ConfigError(f"{name}={mode}: expected one of {', '.join(WANDB_MODES)}.")
    return mode


@LOGGERS.register("tensorboard")
def tensorboard(folder: Path, settings: dict[str, Any]) -> Logger:
    """Logger that writes TensorBoard files into the run folder."""
    from lightning.pytorch.loggers import TensorBoardLogger

    return TensorBoardLogger(save_dir=folder, name="tensorboard", version="")
