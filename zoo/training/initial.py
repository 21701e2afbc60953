"""Training that starts from the weights of another run: ``init=RUN_DIR``, with a fresh optimizer at step 0."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zoo.model.checkpoint import CheckpointError, decoder_weights, find_checkpoint, read_checkpoint
from zoo.model.trained import Trained
from zoo.paths import expand


def load_initial(decoder: nn.Module, run: str | Path, checkpoint: str = "last") -> Trained | None:
    """Loads the weights of a run into ``decoder``.

    Returns:
        The metadata of the training that wrote the checkpoint, or None if training did not write it.

    Raises:
        CheckpointError: if the checkpoint is missing or damaged, or its weights have other names or shapes.
    """
    content = read_checkpoint(find_checkpoint(expand(run), checkpoint))
    weights, own = decoder_weights(content), decoder.state_dict()
    for name in sorted({*weights, *own}):
        theirs, ours = (tuple(x[name].shape) if name in x else "none" for x in (weights, own))
        if theirs != ours:
            raise CheckpointError(
                f"the weights of {run} do not fit the model: {name} is {theirs} there and {ours} here. Use the model, "
                "attention and tokenizer of that run."
            )
    decoder.load_state_dict(weights)
    return Trained.read(content)
