"""Arguments of a sweep's command line, sorted by their purpose."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from zoo.config import ConfigError
from zoo.options.composing import parse_overrides
from zoo.paths import MULTIRUN, take_paths
from zoo.sweeps.arms import override_name


class Given:
    """Arguments of a sweep's command line.

    Attributes:
        sweep: overrides of the sweep.
        task: overrides of evaluations.
        values: lists of values, by key.
        common: overrides of all arms.
        folder: folder of the sweep, if it was given.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        flags = [a for a in arguments if a.startswith("-")]
        if unknown := [flag for flag in flags if flag not in MULTIRUN]:
            raise ConfigError(f"{unknown[0]} does not go with sweep=: expected -m and overrides only.")
        self.sweep: list[str] = []
        self.task: list[str] = []
        self.common: list[str] = []
        self.values: dict[str, list[str]] = {}
        self.folder: str | None = None
        for override in parse_overrides([a for a in take_paths(arguments) if a not in MULTIRUN]):
            self._sort(override, override_name(override.input_line or ""))

    def _sort(self, override: Override, name: str) -> None:
        line = override.input_line or ""
        typed = line if override.is_sweep_override() else f"{name}={override.value()}"
        if name == "hydra.sweep.dir":
            self.folder = os.path.expanduser(OmegaConf.create({name: override.value()})[name])
        elif name.partition(".")[0] in ("hydra", "resume"):
            raise ConfigError(
                f"{typed} does not go with sweep=: every run has a folder of its own in the sweep's, which is "
                "sweeps/NAME or hydra.sweep.dir=FOLDER, and is continued by giving the same command again."
            )
        elif name == "init":
            raise ConfigError(
                f"{typed} does not go with sweep=: a run that starts from another's weights keeps its sizes. "
                "Leave sweep= out for a plain multirun, as in -m init=RUN_DIR seed=0,1."
            )
        elif name == "task":
            raise ConfigError(f"{line} does not go with sweep=: sweep.tasks=[perplexity,mqar] names the evaluations.")
        elif name.partition(".")[0] in ("sweep", "task"):
            if override.is_sweep_override():
                raise ConfigError(f"{line}: expected one value; several are a list, as in task.lengths=[64,128].")
            (self.sweep if name.startswith("sweep") else self.task).append(line)
        elif override.is_sweep_override():
            self.values[name] = [text.replace("\\:", ":") for text in override.sweep_string_iterator()]
        else:
            self.common.append(line)

    def check(self, key: str) -> None:
        """Converts single values of the axis and of the seed to lists of one, and refuses other lists.

        Raises:
            ConfigError: on a list of anything else.
        """
        for line in list(self.common):
            if override_name(line) in (key, "seed"):
                self.common.remove(line)
                self.values.setdefault(override_name(line), [line.partition("=")[2]])
        for name, values in self.values.items():
            if name not in (key, "seed"):
                raise ConfigError(
                    f"{name}={','.join(values)}: this sweep has the axis {key}; only it and seed take several values. "
                    "Leave sweep= out for a plain multirun."
                )
