"""Loggers: jsonl and csv in the run folder always; wandb and tensorboard on request."""

from __future__ import annotations

import csv
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.files import read_metrics, replace_file, replace_text
from zoo.training.strategies import process_rank


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
        with self.lines.open("a", encoding="utf-8") as file:
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
        wandb: keywords of Lightning's WandbLogger with ``mode`` (online, offline, disabled), or None.
        settings: the run's configuration, for loggers that show it.
    """
    loggers: list[Logger] = [LocalLogger(folder, resumed_step)]
    if wandb is not None:
        mode = wandb.get("mode", "online")
        if mode not in ("online", "offline", "disabled"):
            raise ValueError(f"logger.wandb.mode={mode!r}: expected online, offline or disabled.")
        options = {key: value for key, value in wandb.items() if key != "mode"}
        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[
            :16
        ]  # folders of sweeps are called 0, 1, ...
        options = {"id": identity, "resume": "allow", "name": folder.name, **options}
        loggers.append(WandbLogger(save_dir=folder, settings=_wandb_settings(mode), config=settings, **options))
    if tensorboard:
        loggers.append(TensorBoardLogger(save_dir=folder, name="tensorboard", version=""))
    return loggers


def _wandb_settings(mode: str) -> Any:
    import wandb

    return wandb.Settings(mode=mode)  # type: ignore[arg-type]
