"""Options of the groups trainer and logger; configs/trainer, configs/logger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict

from zoo.config import ConfigError
from zoo.options.groups.entries import entry_model
from zoo.registry import LOGGERS
from zoo.schema.base import Count, Flag, Number, Options, Positive, Text, option
from zoo.schema.messages import show


class TrainerOptions(Options):
    """Budget, batch, devices, and intervals of what is written."""

    max_steps: Positive | None = option("budget in optimizer steps")
    max_tokens: Positive | None = option("budget in tokens, which takes the place of max_steps")
    batch_size: Positive = option("sequences per optimizer step, over all devices")
    micro_batch_size: Positive | None = option(
        "sequences per device and forward pass; null: batch_size divided by the devices"
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option("auto: the GPU if there is one")
    devices: Positive | list[Count] | Literal["auto"] = option(
        "devices of this machine, as a number or as a list of their indices; auto: all"
    )
    num_nodes: Positive = option("machines that take part")
    strategy: Literal["auto", "ddp", "fsdp"] = option(
        "ddp: a replica on each device; fsdp: parameters, gradients and moments sharded block by block"
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"] = option(
        "auto: bf16-mixed where the device has it, else 32-true, or 16-mixed on older GPUs"
    )
    gradient_clip: Number | None = option("largest norm of all gradients; null: no clipping", gt=0)
    validate_every: Positive = option("optimizer steps between validations")
    checkpoint_every: Positive = option("optimizer steps between saves of the checkpoint `last`")
    keep_every: Positive | None = option("optimizer steps between saves that stay; null: none")
    log_every: Positive = option("optimizer steps between lines of metrics.jsonl")
    compile: Flag = option("whether torch.compile makes the model faster after some minutes")
    checkpoint_activations: Flag = option("whether activations are computed again in the backward pass, to save memory")


class WandbOptions(Options):
    """Weights & Biases; other keywords are those of Lightning's WandbLogger."""

    model_config = ConfigDict(extra="allow")

    project: Text = option("project of Weights & Biases")
    mode: Literal["online", "offline", "disabled"] | None = option(
        "whether and when runs are sent; null: what WANDB_MODE says, or online"
    )


def read_loggers(node: Mapping[str, Any]) -> dict[str, Any]:
    """Checks the options of each logger, by name; None for one that is not used.

    Raises:
        ConfigError: on an unknown logger or option, and on values of other types.
    """
    read: dict[str, Any] = {}
    for name, options in node.items():
        path = f"logger.{name}"
        model = logger_model(name)
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"{path}={show(options)}: expected options below it, or null.")
        read[name] = None if options is None else model.read(options, path).model_dump(exclude_unset=True)
    return read


def logger_model(name: str) -> type[Options]:
    """Returns the options model of a logger by name.

    Raises:
        ConfigError: if there is none.
    """
    return entry_model(LOGGERS, name, "logger")
