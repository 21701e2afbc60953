"""Training that starts from the weights of another run: ``init=RUN_DIR``, with a fresh optimizer at step 0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zoo.model.checkpoint import PREFIX, CheckpointError, find_checkpoint, read_checkpoint
from zoo.paths import expand


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
