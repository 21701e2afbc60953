"""Loggers: jsonl and csv in the run folder always; wandb and tensorboard on request."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.config import ConfigError
from zoo.files import read_metrics, replace_file, replace_text, writing
from zoo.training.strategies import process_rank

WANDB_MODES = ("online", "offline", "disabled", "shared")


class LocalLogger(Logger):
    """``metrics.jsonl``, a line at a time, and ``metrics.csv``, rewritten at each validation and at the end.

    A resumed run drops the lines after its checkpoint, so that no step is there twice.
    """

    def __init__(self, folder: Path, resumed_step: int | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.lines = folder / "metrics.jsonl"
        self.rows: list[dict[str, Any]] = []
        if resumed_step is not None and process_rank() == 0:
            self.rows = [row for row in read_metrics(self.lines) if row["step"] <= resumed_step]
            replace_text(self.lines, "".join(json.dumps(row) + "\n" for row in self.rows))

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "local"

    @property
    def version(self) -> str:
        """There is one version per run folder."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run folder keeps config.yaml instead."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        row = {"step": step, "time": time.time(), **metrics}
        self.rows.append(row)
        with writing(self.lines), self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if any(key.startswith("val/") for key in metrics):
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the table."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.rows)

        replace_file(self.folder / "metrics.csv", write)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write the table once more."""
        if self.rows:
            self.save()


def build_loggers(
    folder: Path, resumed_step: int | None, wandb: dict[str, Any] | None, tensorboard: bool, settings: dict[str, Any]
) -> list[Logger]:
    """All loggers of a run.

    Args:
        wandb: keywords of Lightning's WandbLogger with ``mode`` (online, offline, disabled; None: what the variable
            WANDB_MODE says, or online), or None.
        settings: the run's configuration, for loggers that show it.

    Raises:
        ConfigError: if a logger cannot be started.
    """
    loggers: list[Logger] = [LocalLogger(folder, resumed_step)]
    if wandb is not None:
        mode = wandb_mode(wandb.get("mode"))
        options = {key: value for key, value in wandb.items() if key != "mode"}
        identity = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[
            :16
        ]  # folders of sweeps are called 0, 1, ...
        options = {"id": identity, "resume": "allow", "name": folder.name, **options}
        loggers.append(_started("wandb", lambda: _wandb(mode, save_dir=folder, config=settings, **options)))
    if tensorboard:
        loggers.append(
            _started("tensorboard", lambda: TensorBoardLogger(save_dir=folder, name="tensorboard", version=""))
        )
    return loggers


def wandb_mode(asked: str | None) -> str:
    """``logger.wandb.mode``, or else what the variable WANDB_MODE says, or else online.

    Raises:
        ConfigError: if it is none of wandb's.
    """
    mode = asked or os.environ.get("WANDB_MODE") or "online"
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)  # older names, which wandb takes too
    if mode not in WANDB_MODES:
        name = "logger.wandb.mode" if asked else "WANDB_MODE"
        raise ConfigError(f"{name}={mode}: expected one of {', '.join(WANDB_MODES)}.")
    return mode


def _started(name: str, build: Callable[[], Logger]) -> Logger:
    """A logger, and its connection where this process has one: what is wrong shows before the first step."""
    try:
        logger = build()
        if process_rank() == 0:
            logger.experiment  # type: ignore[attr-defined]  # noqa: B018
    except Exception as error:  # of wandb, of its service, of the network, of a package that is missing
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = ", or set WANDB_MODE=offline" if name == "wandb" else ""
        raise ConfigError(
            f"logger={name} cannot be started: {reason} Mend that, choose logger=local{remedy}."
        ) from error
    return logger


def _wandb(mode: str, **options: Any) -> Logger:
    import wandb

    return WandbLogger(settings=wandb.Settings(mode=mode), **options)  # type: ignore[arg-type]
