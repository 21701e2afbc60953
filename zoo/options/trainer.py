"""Options of the groups trainer and logger: budget, devices and what is written; configs/trainer, configs/logger."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from zoo.schema.base import Count, Flag, Number, Options, Positive, Text, option


class TrainerOptions(Options):
    """Budget, batch, devices, and how often something is written."""

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


class LoggerOptions(Options):
    """What is written besides metrics.jsonl and metrics.csv."""

    wandb: WandbOptions | None = option("Weights & Biases, with logger=wandb; null: not used")
    tensorboard: Flag = option("whether TensorBoard files are written to the run folder")
