"""Loggers of a run: jsonl and csv in the run folder always; others by name, see :mod:`zoo.registry`."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from zoo.config import ConfigError
from zoo.files import read_metrics, replace_file, replace_text, writing
from zoo.registry import LOGGERS
from zoo.training.strategies import process_rank


class LocalLogger(Logger):
    """Logger of ``metrics.jsonl``, a line at a time, and ``metrics.csv``, rewritten at each validation and at the end.

    A resumed run drops the lines after its checkpoint, so that no step is logged twice.
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
        """Empty: there is one version per run folder."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the run folder has config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends one line to metrics.jsonl."""
        row = {"step": step, "time": time.time(), **metrics}
        self.rows.append(row)
        with writing(self.lines), self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if any(key.startswith("val/") for key in metrics):
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Writes metrics.csv."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))

        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(self.rows)

        replace_file(self.folder / "metrics.csv", write)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes metrics.csv once more, at the end."""
        if self.rows:
            self.save()


def build_loggers(
    folder: Path, resumed_step: int | None, chosen: Mapping[str, Mapping[str, Any] | None], settings: dict[str, Any]
) -> list[Logger]:
    """Builds all loggers of a run: the local one, then those that are chosen.

    Args:
        folder: folder of the run.
        resumed_step: step of the checkpoint from which the run resumes; None for a new run.
        chosen: options of each logger by its name; None for one that is not used.
        settings: the run's configuration, for loggers that show it.

    Raises:
        ConfigError: if a logger cannot be started.
    """
    loggers: list[Logger] = [LocalLogger(folder, resumed_step)]
    for name, options in chosen.items():
        if options is not None:
            loggers.append(_started(name, partial(LOGGERS.get(name), folder, settings, **options)))
    return loggers


def _started(name: str, build: Callable[[], Logger]) -> Logger:
    """A logger, and its connection where this process has one: what is wrong shows before the first step."""
    try:
        logger = build()
        if process_rank() == 0:
            getattr(logger, "experiment", None)
    except ConfigError:
        raise
    except Exception as error:  # of wandb, of its service, of the network, of a package that is missing
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = ", or set WANDB_MODE=offline" if name == "wandb" else ""
        raise ConfigError(
            f"logger={name} cannot be started: {reason} Mend that, choose logger=local{remedy}."
        ) from error
    return logger
