"""Configuration of train.py: all groups, and the checks across them."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Ge, Le
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import SerializeAsAny, field_validator, model_validator
from typing_extensions import Self

from zoo import mixers
from zoo.config import ConfigError, to_dict
from zoo.options.groups.attention import read_entry
from zoo.options.groups.data import DataOptions, TokenizerOptions
from zoo.options.groups.model import ModelOptions, ScheduleOptions, ShareHeadsOptions
from zoo.options.groups.optimizer import OptimizerOptions
from zoo.options.groups.plugins import PLUGINS, PluginNames
from zoo.options.groups.sweep import MatchOptions, NoSweep, SweepOptions
from zoo.options.groups.trainer import TrainerOptions, read_loggers
from zoo.schema.base import Options, PathText, Whole, option
from zoo.schema.messages import sentence, suggest

LARGEST_SEED = 2**32 - 1


class TrainConfig(Options):
    """Configuration of train.py."""

    attention: str = option("attention of every layer that schedule.pattern calls `attention`")
    schedule: ScheduleOptions = option("which attention each layer has")
    model: ModelOptions = option("sizes of the decoder")
    data: DataOptions = option("text and sequences")
    tokenizer: TokenizerOptions = option("how text becomes tokens", discriminator="kind")
    optimizer: SerializeAsAny[OptimizerOptions] = option("optimizer and schedule of the learning rate")
    trainer: TrainerOptions = option("budget, batch and devices")
    logger: dict[str, Any] = option("what is written besides the run's own metrics, as logger.wandb.project=NAME")
    match: MatchOptions | None = option("what is made equal to that of a reference", default=None)
    sweep: SweepOptions | NoSweep | None = option("a series of runs: python train.py -m sweep=NAME", default=None)
    share_heads: ShareHeadsOptions | None = option("bring key heads together while training", default=None)
    mixers: dict[str, dict[str, Any]] = option("options of each attention, as mixers.window.window=128")
    plugins: PluginNames = option(PLUGINS, default=[])
    seed: Annotated[Whole, Ge(0), Le(LARGEST_SEED)] = option(
        "seed of weights, of the order of data and of all that is drawn"
    )
    resume: PathText | None = option(
        "run folder that is continued, with its own configuration; auto: the one in hydra.run.dir, or of this job",
        default=None,
    )
    init: PathText | None = option(
        "run folder whose configuration, model, tokenizer and weights a new run starts from", default=None
    )

    @field_validator("optimizer", mode="before")
    @classmethod
    def _read_optimizer(cls, node: Any) -> Any:
        return OptimizerOptions.chosen(node).read(node, "optimizer") if isinstance(node, dict) else node

    @field_validator("logger", mode="before")
    @classmethod
    def _read_loggers(cls, node: Any) -> Any:
        return read_loggers(node) if isinstance(node, dict) else node

    @field_validator("mixers", mode="before")
    @classmethod
    def _check_mixers(cls, entries: Any) -> Any:
        return (
            {name: read_entry(name, node) for name, node in entries.items()} if isinstance(entries, dict) else entries
        )

    @model_validator(mode="after")
    def _check_attention(self) -> Self:
        known = {*mixers.names(), *self.mixers}
        if self.attention not in known:
            raise ConfigError(
                f"attention={self.attention}: unknown attention; {sentence(suggest(self.attention, sorted(known)))}"
            )
        return self

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        trainer = self.trainer
        if trainer.max_steps is None and trainer.max_tokens is None:
            raise ConfigError("no budget: set trainer.max_steps or trainer.max_tokens.")
        devices = trainer.devices if isinstance(trainer.devices, int) else None
        world = None if devices is None else devices * trainer.num_nodes
        micro = trainer.micro_batch_size or (1 if world is None else max(1, trainer.batch_size // world))
        if trainer.batch_size % (micro * (world or 1)):
            raise ConfigError(
                f"trainer.batch_size={trainer.batch_size} is not divisible by trainer.micro_batch_size="
                f"{trainer.micro_batch_size or 'null'} on {world or 1} device(s): change one of them."
            )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> Self:
        if self.trainer.strategy != "fsdp":
            return self
        if self.optimizer.WHOLE:
            raise ConfigError(
                f"trainer.strategy=fsdp shards matrices, which optimizer={self.optimizer.name} needs whole: use "
                "optimizer=adamw."
            )
        if self.share_heads is not None and self.share_heads.kv_heads is not None:
            raise ConfigError("share_heads needs whole weights: use trainer.strategy=auto or ddp, not fsdp.")
        return self


def read_config(config: DictConfig) -> TrainConfig:
    """Reads the checked options of a composed configuration of train.py.

    Raises:
        ConfigError: one line about all that is wrong.
    """
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise ConfigError(f"{', '.join(f'{key}=???' for key in missing[:3])}: expected a value; ??? stands for none.")
    try:
        return TrainConfig.read(to_dict(config))
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(line.strip() for line in str(error).splitlines())) from error


def normalize(config: DictConfig, read: Options) -> DictConfig:
    """Returns a copy of ``config`` with the values of ``read`` where these differ, as 1000 for 1e3."""
    plain, copy = to_dict(config), config.copy()
    _take(copy, plain, read.model_dump(exclude_unset=True), "")
    return copy


def _take(config: DictConfig, old: Any, new: Any, path: str) -> None:
    """Lay over ``config`` what differs in value or type; interpolations stay where their value does."""
    for key, value in new.items():
        below = f"{path}.{key}" if path else str(key)
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _take(config, old[key], value, below)
        elif repr(value) != repr(old.get(key)):
            OmegaConf.update(config, below, value, force_add=True)
