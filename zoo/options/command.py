"""Command line of train.py, checked before Hydra makes a folder: help, errors, and notes on unread options."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zoo import mixers
from zoo.config import to_dict
from zoo.options.check import check_job
from zoo.options.composing import Command, compose_config, read_command
from zoo.options.groups.attention import attention_model
from zoo.options.groups.data import source_model
from zoo.options.groups.trainer import logger_model
from zoo.options.train import TrainConfig
from zoo.options.unread import notes
from zoo.options.usage import OptionRow, group_rows, option_rows, render, signature_rows
from zoo.plugins import config_files
from zoo.registry import SOURCES

ALONE = ("seed", "resume", "init", "plugins")  # options of no group
RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
HEAD = """\
python train.py KEY=VALUE ...

Trains a decoder language model. A group of options is chosen by the name of a file, attention=window, and a single
option by its path, trainer.max_steps=500. Values shown here are those of the command: add overrides to see others.

  -m                              a run for each of several values, seed=0,1,2, or a sweep, -m sweep=NAME
  --cfg job                       print the configuration, and run nothing
"""


def check_command(arguments: Sequence[str], program: str = "train") -> Command:
    """Composes and checks every job of a command line of train.py; prints help if it asks for it.

    Args:
        arguments: arguments of the command line, paths quoted.
        program: file of configs/.

    Raises:
        ValueError: one line about what cannot be trained.
        SystemExit: after help.
    """
    command = read_command(arguments)
    if command.help:
        print(train_help(command.overrides, program))
        raise SystemExit(0)
    if command.shows:
        return command
    for job in command.jobs:
        settled = check_job(compose_config(program, job, command.config_dir), job)
        if not command.multirun and next((os.environ[n] for n in RANKS if n in os.environ), "0") == "0":
            for note in notes(settled, job):
                print(f"note: {note}", file=sys.stderr, flush=True)
    return command


def train_help(overrides: Sequence[str], program: str = "train") -> str:
    """Returns the help text: every option of train.py, by group; of attentions those of the chosen one."""
    values = to_dict(compose_config(program, overrides))
    parts = [HEAD, render("Files to choose from", list(group_rows(program, overrides)))]
    rows = list(option_rows(TrainConfig, values))
    parts.append(render("run", [row for row in rows if row.path in ALONE]))
    for group in dict.fromkeys(row.path.partition(".")[0] for row in rows if "." in row.path):
        if group != "mixers":
            own = [row for row in rows if row.path.startswith(f"{group}.") and row.path != "data.source"]
            own += _source_rows(values["data"]) if group == "data" else []
            parts.append(render(f"{group}: {TrainConfig.model_fields[group].description}", own))
    about = TrainConfig.model_fields["logger"].description
    parts.append(render(f"logger: {about}", list(_logger_rows(values["logger"]))))
    return "\n\n".join([*parts, _attention_help(values["attention"], values["mixers"])])


def _source_rows(data: Mapping[str, Any]) -> list[OptionRow]:
    source, file = data["source"], config_files("data").get(data["name"])
    kind = OptionRow("data.source.kind", source["kind"], "registered source of documents", ", ".join(SOURCES))
    return [kind, *signature_rows(source_model(source["kind"]), source, "data.source", file)]


def _logger_rows(loggers: Mapping[str, Any]) -> Iterator[OptionRow]:
    for name, options in loggers.items():
        if options:
            yield from option_rows(logger_model(name), options, f"logger.{name}")
        else:
            yield OptionRow(
                f"logger.{name}", options, f"options of this logger, with logger={name}; null: not used", ""
            )


def _attention_help(name: str, entries: Mapping[str, Any]) -> str:
    """Options of the chosen attention, and the names of the others."""
    file = config_files("attention").get(name)
    rows = signature_rows(attention_model(name), entries[name], f"mixers.{name}", file)
    others = ", ".join(other for other in mixers.names() if other != name)
    return render(f"options of attention={name}; add attention=NAME for another one ({others})", list(rows))
