"""Budget of a run in optimizer steps."""

from __future__ import annotations

import math

from omegaconf import DictConfig

from zoo.config import ConfigError
from zoo.options.groups.trainer import TrainerOptions


def step_budget(trainer: TrainerOptions | DictConfig, length: int) -> int:
    """Converts the budget, which is given in tokens or else in steps, to optimizer steps.

    Args:
        trainer: group of the configuration.
        length: input tokens of a sequence.

    Raises:
        ConfigError: if neither is given, or if it is not positive.
    """
    if trainer.max_tokens is not None:
        steps = math.ceil(trainer.max_tokens / (trainer.batch_size * length))
    elif trainer.max_steps is not None:
        steps = trainer.max_steps
    else:
        raise ConfigError("no budget: set trainer.max_steps or trainer.max_tokens.")
    if steps < 1:
        raise ConfigError(f"the budget is {steps} steps: expected at least 1.")
    return steps
