"""Options of the programs that Hydra composes and that write no run folder: eval.py, generate.py and convert.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.config import ConfigError
from zoo.conversion.head_merging import Method, Target
from zoo.options.composing import compose_config
from zoo.options.groups.plugins import PLUGINS, PluginNames
from zoo.options.train import LARGEST_SEED, TrainConfig, normalize, read_config
from zoo.paths import print_any_name, take_paths
from zoo.plugins import import_typed
from zoo.schema.arguments import HELP, OutputFolder, option_lines
from zoo.schema.base import (
    FORMATS,
    Count,
    Flag,
    Number,
    Options,
    PathText,
    PictureFormats,
    Positive,
    Text,
    Whole,
    option,
)

Seed = Annotated[Whole, Ge(0), Le(LARGEST_SEED)]
Checkpoint = Annotated[Text, option("of the run: last, best or step-N", pattern=r"^(last|best|step-\d+)$")]
Device = Annotated[Text, option("auto, cpu or cuda; auto: the first GPU if there is one")]
Run = Annotated[PathText | None, option("RUN_DIR, the folder that train.py wrote")]


class Places(Options):
    """Present paths of a run's data."""

    path: PathText | None = option("where the data of the runs lie now, if they have moved; their content is checked")
    cache_dir: PathText | None = option("folder for token stores; null: that of training")


class EvaluationOptions(Options):
    """Options of eval.py."""

    run: PathText | list[PathText] | None = option(
        "RUN_DIR, the folder that train.py wrote; several with commas between them are compared"
    )
    task: dict[str, Any] = option("a file of configs/task, and its options")
    checkpoint: Checkpoint
    device: Device
    seed: Seed = option("of samples and bootstraps")
    out: OutputFolder | None = option(
        "folder for results of one run, or for the comparison of several; null: RUN_DIR/eval, or one in comparisons/"
    )
    formats: PictureFormats = option(FORMATS, min_length=1)
    data: Places = option("places of the data of training")
    plugins: PluginNames = option(PLUGINS)


class GenerationOptions(Options):
    """Options of scripts/generate.py."""

    run: Run
    prompt: Text | None = option("text to continue, of any characters, which Hydra does not read; null: none")
    prompt_file: PathText | None = option("file of the text to continue, in place of prompt=")
    checkpoint: Checkpoint
    device: Device
    max_new_tokens: Count = option("tokens of the continuation")
    temperature: Annotated[Number, Ge(0)] = option("of what is drawn; 0: always the most likely token")
    top_k: Positive | None = option("draw from the k most likely tokens; null: from all")
    top_p: Annotated[Number, Gt(0), Le(1)] | None = option(
        "draw from the most likely tokens that together reach probability p; null: from all"
    )
    seed: Seed = option("of what is drawn")
    plugins: PluginNames = option(PLUGINS)


class ConversionOptions(Options):
    """Options of scripts/convert.py."""

    run: Run
    to: Target = option("attention that softmax layers become")
    kv_heads: Positive | None = option("key heads that remain per layer; null: the default of the target")
    method: Method = option("how heads become one")
    whiten: Flag = option("minimize errors of keys and values on the run's text, and not those of weights")
    whiten_tokens: Positive = option("tokens of the run's training text that are read for it")
    out: OutputFolder | None = option("the new folder; null: beside RUN_DIR, named after the conversion")
    data: Places = option("places of the data of training")
    checkpoint: Checkpoint
    device: Device
    plugins: PluginNames = option(PLUGINS)


TRAINING = (*TrainConfig.model_fields, "experiment")  # first parts of the keys of train.py's options

Given = TypeVar("Given", bound=Options)


def read_program(
    program: str,
    kind: type[Given],
    arguments: Sequence[str],
    usage: str | None,
    more: Callable[[], list[str]] = list,
) -> Given:
    """Reads the checked options of a program; ``--help`` prints them and ends it.

    Args:
        program: name of a file of configs/, which has the defaults.
        kind: model of the options.
        arguments: as typed, without the name of the program.
        usage: what ``--help`` prints before the options.
        more: returns lines that it prints after them.

    Raises:
        ConfigError: one line about what is wrong.
    """
    print_any_name()
    import_typed(arguments, program)
    if set(HELP) & set(arguments):
        lines = option_lines(kind, composed(program))
        print((usage or "").strip(), "", "Options:", "", *lines, *more(), sep="\n")
        raise SystemExit(0)
    for flag in (argument for argument in arguments if argument.startswith("-")):
        raise ConfigError(f"{flag}: expected KEY=VALUE, or --help.")
    return kind.read(composed(program, take_paths(arguments)))


def compose_training(overrides: Sequence[str]) -> DictConfig:
    """Returns the checked configuration that train.py would have with ``overrides``.

    Raises:
        ConfigError: one line about what is wrong.
    """
    config = compose_config("train", take_paths(overrides))
    return normalize(config, read_config(config))


def composed(program: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Returns all values of a composed configuration, interpolations resolved.

    Raises:
        ConfigError: on an override that cannot be composed, and a value that refers to what does not exist.
    """
    config = compose_config(program, overrides)
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
