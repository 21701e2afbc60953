"""Training that starts from the weights of another run: ``init=RUN_DIR``, with a fresh optimizer at step 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from zoo.config import ConfigError, copy_option, load_run_config, move_data
from zoo.model.checkpoint import PREFIX, CheckpointError, find_checkpoint, read_checkpoint
from zoo.paths import expand, literal

FIXED = ("model", "attention", "mixers", "schedule", "tokenizer", "match", "experiment", "resume")


def initial_config(config: DictConfig, overrides: list[str]) -> DictConfig:
    """Configuration of the run in ``config.init`` with every override of the command line but those of its weights.

    Raises:
        ConfigError: on an override of the model or the tokenizer, or of an experiment, which may set both.
    """
    saved = load_run_config(config.init)
    given = {override.lstrip("+~").partition("=")[0] for override in overrides}
    for key in sorted(given):
        if key == "init" or key.startswith("hydra."):
            continue
        group = key.partition("@")[0].replace("/", ".")
        if group.partition(".")[0] in FIXED:
            raise ConfigError(
                f"{key} cannot be changed by a run that starts from the weights of {config.init}: these fix the model "
                "and the tokenizer."
            )
        copy_option(config, saved, group)
    if "trainer.max_steps" in given and "trainer.max_tokens" not in given:
        OmegaConf.update(saved, "trainer.max_tokens", None, force_add=True)
    if "match" in saved:
        saved.match.quantity = None  # the sizes are those of the weights
    if not given & {"data", "data.source", "data.source.path"}:  # whose source has these places already
        move_data(saved, *(OmegaConf.select(saved, n) if n in given else None for n in ("data.path", "data.cache_dir")))
    saved.init, saved.resume = literal(config.init), None
    return saved


def initial_weights(run: str | Path, checkpoint: str = "last") -> dict[str, Tensor]:
    """Weights of a run's decoder by name, on the CPU.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged.
    """
    state = read_checkpoint(find_checkpoint(expand(run), checkpoint))["state_dict"]
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}


def initial_recall(run: str | Path, checkpoint: str = "last") -> dict[str, Any] | None:
    """What a run was trained to recall, as its checkpoint says, or None.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged.
    """
    facts = read_checkpoint(find_checkpoint(expand(run), checkpoint)).get("zoo")
    return facts.get("recall") if isinstance(facts, dict) else None


def load_initial(decoder: nn.Module, run: str | Path, checkpoint: str = "last") -> None:
    """Give ``decoder`` the weights of a run.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged, or its weights have other names or shapes.
    """
    weights, own = initial_weights(run, checkpoint), decoder.state_dict()
    for name in sorted({*weights, *own}):
        theirs, ours = (tuple(x[name].shape) if name in x else "none" for x in (weights, own))
        if theirs != ours:
            raise CheckpointError(
                f"the weights of {run} do not fit the model: {name} is {theirs} there and {ours} here. Use the model, "
                "attention and tokenizer of that run."
            )
    decoder.load_state_dict(weights)
