"""The command line: ``attention-zoo COMMAND [OPTION=VALUE ...]``, and what train.py, eval.py and scripts/ call.

Imports nothing that takes long, so that a Ctrl-C during imports is answered too.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from zoo import cli

COMMANDS = {
    "train": "train a model, or with -m every run of a sweep",
    "eval": "evaluate trained runs, and compare several",
    "report": "one page of evidence from a sweep",
    "generate": "continue a text with a trained run",
    "convert": "give a trained run fewer key heads",
    "plan": "what a model costs, and what a machine makes of it",
    "compare": "runs side by side as Markdown",
    "conversion_table": "a run and its conversions as Markdown",
    "check": "test whether a module is a causal token mixer",
    "gallery": "draw every attention: its weights and its costs",
}
HELP = ("-h", "--help", "help")


def run(command: str, arguments: Sequence[str]) -> NoReturn:
    """Runs a command and ends the process with its status; errors that a user can act on are one line.

    Args:
        command: one of COMMANDS.
        arguments: as typed, without the name of the program.
    """
    with cli.friendly_errors():
        status = import_module(f"zoo.commands.{command}").main(list(arguments))
        raise SystemExit(status)


def main() -> NoReturn:
    """Entry point of the console command ``attention-zoo``."""
    words = sys.argv[1:]
    if not words or words[0] in HELP:
        print("attention-zoo COMMAND [OPTION=VALUE ...]; --help after a command tells its options\n")
        print("\n".join(f"  {name:18}{meaning}" for name, meaning in COMMANDS.items()))
        raise SystemExit(0 if words else 2)
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}."
        cli.refuse(f"attention-zoo {words[0]}: there is no such command; {hint}")
    cli.COMMAND[:] = words[:1]
    run(words[0], words[1:])
