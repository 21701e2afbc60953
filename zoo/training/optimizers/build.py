"""Optimizers over the decoder's parameters, and learning-rate schedules as factors of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zoo.model import Decoder
from zoo.model.parameters import split_parameters
from zoo.options.groups.optimizer import AdamWOptions, MuonOptions, OptimizerOptions, Schedule
from zoo.registry import OPTIMIZERS
from zoo.training.optimizers.muon import Muon

SCHEDULE_KEYS = tuple(name for name in OptimizerOptions.model_fields if name != "name")


@OPTIMIZERS.register("adamw", AdamWOptions)
def adamw(decoder: Decoder, lr: float, weight_decay: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101); only matrices of linear layers decay."""
    hidden, rest = split_parameters(decoder)
    groups = [{"params": hidden, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=_fused(hidden))


@OPTIMIZERS.register("muon", MuonOptions)
def muon(
    decoder: Decoder, lr: float, weight_decay: float, betas: tuple[float, float], momentum: float, embedding_lr: float
) -> torch.optim.Optimizer:
    """Muon for the matrices of the blocks; AdamW with ``embedding_lr`` for embeddings, head, norms and vectors."""
    hidden, rest = split_parameters(decoder)
    groups = [
        {"params": hidden, "lr": lr, "muon": True, "weight_decay": weight_decay, "momentum": momentum},
        {"params": rest, "lr": embedding_lr, "muon": False, "weight_decay": 0.0, "betas": tuple(betas)},
    ]
    return Muon(groups)


def build_optimizer(decoder: Decoder, name: str, **options: Any) -> torch.optim.Optimizer:
    """Builds an optimizer by name.

    Raises:
        ValueError: on an unknown name; the message lists what exists.
    """
    optimizer: torch.optim.Optimizer = OPTIMIZERS.get(name)(decoder, **options)
    return optimizer


def scheduled_optimizer(
    decoder: Decoder, options: Mapping[str, Any], total: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Builds the optimizer and the schedule of its learning rate, which is stepped with every optimizer step.

    Args:
        decoder: decoder whose parameters are trained, on the device that trains them.
        options: options of both, as in configs/optimizer.
        total: optimizer steps that the schedule runs over.
    """
    own = dict(options)
    schedule = {key: own.pop(key) for key in SCHEDULE_KEYS}
    optimizer = build_optimizer(decoder, **own)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, total, **schedule))


def _fused(parameters: list[nn.Parameter]) -> bool:
    return parameters[0].device.type in ("cpu", "cuda")


def rate_factor(
    step: int, total: int, schedule: Schedule, warmup_steps: int, decay_fraction: float, final_factor: float
) -> float:
    """Learning rate of a step as a fraction of its peak.

    Args:
        step: optimizer steps done.
        total: steps of the budget.
        schedule: ``cosine`` (Loshchilov and Hutter 2016, arXiv:1608.03983), ``wsd`` (warm-up, stable, linear decay; Hu
            et al. 2024, arXiv:2404.06395) or ``constant``.
        warmup_steps: steps in which the rate rises from zero.
        decay_fraction: last part of the budget in which ``wsd`` decays.
        final_factor: fraction of the peak at the end.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    start = warmup_steps if schedule == "cosine" else max(warmup_steps, round(total * (1 - decay_fraction)))
    progress = min(max((step - start) / max(total - start, 1), 0.0), 1.0)
    left = (1 + math.cos(math.pi * progress)) / 2 if schedule == "cosine" else 1 - progress
    return final_factor + (1 - final_factor) * left
