"""The budget of a run in optimizer steps."""

from __future__ import annotations

import math

from omegaconf import DictConfig

from zoo.config import ConfigError


def step_budget(config: DictConfig) -> int:
    """Optimizer steps of the budget, which is given in tokens, or else in steps.

    Raises:
        ConfigError: if neither is given, or if it is not positive.
    """
    trainer = config.trainer
    tokens_per_step = trainer.batch_size * config.data.length
    if trainer.max_tokens is not None:
        steps = math.ceil(trainer.max_tokens / tokens_per_step)
    elif trainer.max_steps is not None:
        steps = trainer.max_steps
    else:
        raise ConfigError("no budget: set trainer.max_steps or trainer.max_tokens.")
    if steps < 1:
        raise ConfigError(f"the budget is {steps} steps: expected at least 1.")
    return steps
