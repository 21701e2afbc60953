"""Options of the groups trainer and logger: budget, devices and what is written; configs/trainer, configs/logger."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from zoo.schema.base import Count, Flag, Number, Options, Positive, Text, option


class TrainerOptions(Options):
    """Budget, batch, devices, and how often something is written."""

    max_steps: Positive | None = option("budget in optimizer steps", unit="optimizer steps")
    max_tokens: Positive | None = option("budget in tokens, which takes the place of max_steps", unit="tokens")
    batch_size: Positive = option("per optimizer step, over all devices", unit="sequences")
    micro_batch_size: Positive | None = option(
        "per device and forward pass; null: batch_size divided by the devices", unit="sequences"
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option("auto: the GPU if there is one")
    devices: Positive | list[Count] | Literal["auto"] = option(
        "of this machine, as a number or as a list of their indices; auto: all", unit="devices"
    )
    num_nodes: Positive = option("that take part", unit="machines")
    strategy: Literal["auto", "ddp", "fsdp"] = option(
        "ddp: a replica on each device; fsdp: parameters, gradients and moments sharded block by block"
    )
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"] = option(
        "auto: bf16-mixed where the device has it, else 32-true, or 16-mixed on older GPUs"
    )
    gradient_clip: Number | None = option("largest norm of all gradients; null: no clipping", gt=0)
    validate_every: Positive = option("between validations", unit="optimizer steps")
    checkpoint_every: Positive = option("between saves of the checkpoint `last`", unit="optimizer steps")
    keep_every: Positive | None = option("between saves that stay; null: none", unit="optimizer steps")
    log_every: Positive = option("between lines of metrics.jsonl", unit="optimizer steps")
    compile: Flag = option("whether torch.compile makes the model faster after some minutes")
    checkpoint_activations: Flag = option("whether activations are computed again in the backward pass, to save memory")


class WandbOptions(Options):
    """Weights & Biases; other keywords are those of Lightning's WandbLogger."""

    model_config = ConfigDict(extra="allow")

    project: Text = option("project of Weights & Biases")
    mode: Literal["online", "offline", "disabled"] = option("whether and when runs are sent")


class LoggerOptions(Options):
    """What is written besides metrics.jsonl and metrics.csv."""

    wandb: WandbOptions | None = option("Weights & Biases, with logger=wandb; null: not used")
    tensorboard: Flag = option("whether TensorBoard files are written to the run folder")
