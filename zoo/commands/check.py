"""Whether a module is a causal token mixer: a table of checks, each failing one with its smallest case.

    python scripts/check.py my_package:MyAttention width=64 heads=4 [OPTION=VALUE ...]
    python scripts/check.py lightning [OPTION=VALUE ...]

The first word is MODULE:NAME of a torch.nn.Module, of a class or of a function that makes one, found from the current
folder on; or a registered attention. All options but those below are keywords of the class or function, as YAML
values. The status is 0 if no check fails, 1 if one does, and 2 if the module cannot be built. What each check says
stands in docs/check.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from zoo.config import ConfigError
from zoo.conformance import check
from zoo.schema.arguments import HELP, Arguments, read_arguments
from zoo.schema.base import Flag, Positive, option


class Options(Arguments):
    """Options of the checks."""

    width: Positive = option("model width C of the inputs", default=64)
    heads: Positive = option("heads, where the module is told a number", default=4)
    longest: Positive = option("tokens of the longest input, at least 2", default=133)
    compile: Flag = option("whether to check torch.compile, which takes longest", default=True)


def split(arguments: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Splits arguments into those of the command, and keywords of the module.

    Raises:
        ConfigError: on a value that is not YAML.
    """
    own: list[str] = []
    keywords: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key in Options.model_fields or not key.isidentifier():
            own.append(argument)
            continue
        try:
            keywords[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"{argument}: expected a number, true, false, null, a word or a list.") from None
    return own, keywords


def main(arguments: list[str]) -> int:
    """Runs the checks, prints the table, and returns the exit status."""
    own, keywords = ([*arguments], {}) if set(HELP) & set(arguments) else split(arguments)
    chosen, names = read_arguments(Options, own, __doc__, rest="MODULE:NAME")
    if len(names) != 1:
        raise ConfigError(f"{len(names)} modules: expected one, as my_package:MyAttention, or a registered attention.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    report = check(names[0], **chosen.model_dump(exclude={"plugins"}), **keywords)
    print(report)
    return 0 if report.passed else 1
