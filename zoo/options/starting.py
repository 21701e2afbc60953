"""How a program begins: its configuration from the command line, and the folder it may write to, which is not made yet.

Hydra makes the folder of a run before it calls the program, so that a refused one leaves it behind. Here a single run
is composed without Hydra's launcher, and the jobs of a multirun have their Hydra folders in a temporary one.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from zoo.cli import friendly_errors
from zoo.config import CONFIGS
from zoo.options.composing import compose_config
from zoo.paths import MULTIRUN, expand, print_any_name, quote, take_paths


@dataclass(frozen=True)
class Invocation:
    """One call of a program.

    Attributes:
        overrides: of the command line, in Hydra's grammar, without those of Hydra itself.
        folder: what hydra.run.dir says, absolute; nobody has made it.
    """

    overrides: list[str]
    folder: str


Main = Callable[[DictConfig, Invocation], None]


def start(program: str, main: Main, arguments: Sequence[str]) -> None:
    """Call ``main`` with the configuration of ``configs/PROGRAM.yaml`` that a command line asks for.

    Args:
        program: name of the file in configs/.
        main: called once, or once for each job of a multirun; users' errors in it end the program with one line.
        arguments: as typed; the values of paths stand for themselves, see :mod:`zoo.paths`.
    """
    print_any_name()
    taken = take_paths(arguments)
    if any(argument.startswith("-") for argument in taken):
        _start_hydra(program, main, taken)
        return
    with friendly_errors():
        config, job = compose_job(program, taken)
        if not any(argument.startswith("hydra.run.dir=") for argument in arguments):
            sys.argv.append(f"hydra.run.dir={job.folder}")  # processes that Lightning starts repeat the command
        main(config, job)


def compose_job(program: str, overrides: Sequence[str]) -> tuple[DictConfig, Invocation]:
    """Configuration and job of a program without flags.

    Raises:
        ConfigError: if there is no such configuration.
    """
    config = compose_config(program, overrides, hydra=True)
    folder = os.path.abspath(expand(str(config.hydra.run.dir)))
    with open_dict(config):
        del config["hydra"]
    return config, Invocation([text for text in overrides if not text.lstrip("+~").startswith("hydra")], folder)


def _start_hydra(program: str, main: Main, arguments: Sequence[str]) -> None:
    """Hydra's own launcher, for help and for a multirun."""
    multirun = any(flag in arguments for flag in MULTIRUN)
    with friendly_errors(), tempfile.TemporaryDirectory(prefix=f"{program}-multirun-") as scratch:
        own = [f"hydra.job.name={program}"]
        base = ""
        if multirun:
            places = [text for text in arguments if text.startswith("hydra.sweep.dir=")]
            base = str(compose_config(program, places, hydra=True).hydra.sweep.dir)
            own.append(f"hydra.sweep.dir={quote(scratch)}")

        def task(config: DictConfig) -> None:
            job = HydraConfig.get()
            folder = job.runtime.output_dir
            if multirun:
                folder = os.path.join(expand(base), os.path.relpath(folder, scratch))
            with friendly_errors():
                main(config, Invocation([str(text) for text in job.overrides.task], os.path.abspath(folder)))

        sys.argv[1:] = [*arguments, *own]
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=program)(task)()
