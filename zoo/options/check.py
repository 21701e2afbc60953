"""Checks of a run of train.py before anything is read, tokenized or created.

:func:`check_job` is for a command line, :func:`check_config` for a configuration that is composed already, as an arm of
a sweep is before the first arm starts (``here=False`` where the arms run on other machines).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from omegaconf import DictConfig

from zoo.config import ConfigError, absolute, to_dict
from zoo.costs.machine import choose_accelerator, device_memory
from zoo.costs.plan_text import binary
from zoo.costs.roofline import training_memory
from zoo.data.sources.build import build_source
from zoo.model import Decoder
from zoo.model.from_config import Architecture, decoder_config
from zoo.options.budget import step_budget
from zoo.options.continued import initial_config, resumed_config
from zoo.options.groups.data import TokenizerOptions
from zoo.options.groups.trainer import TrainerOptions
from zoo.options.train import normalize, read_config
from zoo.paths import literal
from zoo.registry import imported_entry_points, nothing_imported

DTYPES = {"bf16-mixed": "bf16", "bf16-true": "bf16", "16-mixed": "fp16", "16-true": "fp16"}
UNKNOWN_VOCABULARY = 1  # of a tokenizer that is not read yet: sizes are counted without its embeddings


def check_job(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Returns the checked configuration of one run: as composed, or that of ``resume`` or ``init`` with the overrides.

    Args:
        config: configuration as Hydra composes it.
        overrides: overrides as typed.

    Raises:
        ValueError: one line about what cannot be trained.
    """
    config = normalize(config, read_config(config))
    if config.sweep.name:
        name = config.sweep.name
        raise ConfigError(f"sweep={name} is a series of runs: add -m, as in python train.py -m sweep={name}.")
    if config.resume:
        config = resumed_config(config, list(overrides))
    elif config.init:
        config = initial_config(config, list(overrides))
    try:
        return check_config(config)
    except ConfigError as error:
        if folder := config.resume or config.init:
            raise ConfigError(f"{folder}/config.yaml: {error}") from error
        raise


def check_config(config: DictConfig, here: bool = True) -> DictConfig:
    """Returns a copy of ``config`` with checked values, integers as such and paths absolute.

    Args:
        config: composed configuration, not of a resumed run.
        here: whether it runs on this machine, whose devices and memory must suffice.

    Raises:
        ValueError: one line about what is wrong: options, sizes that do not fit together, a path that does not exist,
            devices that are not here, or more memory than there is.
    """
    from_folder = config.get("resume") or config.get("init")
    with nothing_imported() if from_folder else nullcontext():
        return _check_config(config, here)


def _check_config(config: DictConfig, here: bool) -> DictConfig:
    read = read_config(config)
    settled = normalize(config, read)
    steps = step_budget(read.trainer, read.data.length)
    if (share := read.share_heads) is not None and share.kv_heads is not None and share.steps > steps:
        raise ConfigError(
            f"share_heads.steps={share.steps} is more than the budget of {steps} steps: the heads would not "
            "become equal."
        )
    if here:
        _check_devices(read.trainer)
    settled.plugins = list(dict.fromkeys([*read.plugins, *imported_entry_points()]))
    source = build_source(to_dict(settled.data.source))
    if hasattr(source, "check"):
        source.check()
    with torch.device("meta"):
        decoder = Decoder(decoder_config(Architecture.of(settled), _vocabulary(read.tokenizer)))
    if here:
        _check_memory(read.trainer, read.data.length, read.optimizer.name, decoder)
    for name in ("path", "cache_dir"):
        if settled.data[name] and read.resume is None:
            settled.data[name] = literal(absolute(settled.data[name]))  # so that eval.py works from anywhere
    return settled


def _vocabulary(tokenizer: TokenizerOptions) -> int:
    return getattr(tokenizer, "vocab_size", 257 if tokenizer.kind == "bytes" else UNKNOWN_VOCABULARY)


def _check_devices(trainer: TrainerOptions) -> None:
    """Accelerator, number of devices and precision."""
    accelerator = choose_accelerator(trainer.accelerator)
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not present.get(accelerator, False):
        there = ", ".join(name for name, usable in present.items() if usable)
        raise ConfigError(f"trainer.accelerator={trainer.accelerator}: there is none here; expected auto or {there}.")
    if accelerator == "cuda" and trainer.devices != "auto":
        count = torch.cuda.device_count()
        wanted = trainer.devices if isinstance(trainer.devices, int) else max(trainer.devices, default=0) + 1
        if int(wanted) > count:
            raise ConfigError(f"trainer.devices={trainer.devices}: there are {count} GPUs here.")
    if accelerator == "cpu" and trainer.precision in ("16-mixed", "16-true"):
        raise ConfigError(f"trainer.precision={trainer.precision} is for GPUs: on CPUs use 32-true or bf16-mixed.")


def world_size(trainer: TrainerOptions) -> int:
    """Number of processes that share a batch, as far as the configuration says it."""
    devices = trainer.devices
    if devices == "auto":
        count = torch.cuda.device_count() if choose_accelerator(trainer.accelerator) == "cuda" else 1
    else:
        count = len(devices) if isinstance(devices, list) else int(devices)
    return count * trainer.num_nodes


def _check_memory(trainer: TrainerOptions, length: int, optimizer: str, decoder: Decoder) -> None:
    """Weights, moments, and the larger of gradients and activations of a micro batch: no step can do with less."""
    accelerator = choose_accelerator(trainer.accelerator)
    memory = device_memory(accelerator)
    if memory is None:
        return
    world = world_size(trainer)
    micro = trainer.micro_batch_size or math.ceil(trainer.batch_size / world)
    dtype = DTYPES.get(trainer.precision, "bf16" if trainer.precision == "auto" and accelerator == "cuda" else "fp32")
    held = training_memory(decoder, micro * length, dtype, optimizer, trainer.checkpoint_activations)
    shards = world if trainer.strategy == "fsdp" else 1
    states = (held["weights"] + held["optimizer"]) / shards
    if states + max(held["gradients"] / shards, held["activations"]) <= memory:
        return
    sequence = held["activations"] / micro
    fits = int((memory - states) // sequence)
    if states + held["gradients"] / shards > memory:
        advice = "use a smaller model.width or model.depth"
    elif fits >= 1:
        advice = f"trainer.micro_batch_size={fits} would fit"
    else:
        advice = f"use a data.length below {max(1, int(length * (memory - states) / sequence)):,}"
    raise ConfigError(
        f"this run needs {binary(states + held['gradients'] / shards)} for weights, gradients and moments and "
        f"{binary(held['activations'])} for the activations of {micro:,} sequences of {length:,} tokens; there are "
        f"{binary(memory)} on this {'GPU' if accelerator == 'cuda' else 'machine'}: {advice}."
    )
