"""What a checkpoint says of its training is read as it was written, and is plain data on the disk."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zoo.model import CheckpointError
from zoo.model.checkpoint import read_trained
from zoo.model.trained import Trained

WHOLE = Trained("abc", 16, 640, 64, {"train": "k"}, ("mine",), {"share": 0.5}, {"to": "gqa"}, step=10)


@pytest.mark.parametrize("trained", [WHOLE, replace(WHOLE, recall=None, converted=None, plugins=(), data={})])
def test_what_is_written_is_read(trained):
    content = {"global_step": 10}
    trained.write(content)
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    read = Trained.read(torch.load(file, weights_only=True))
    assert replace(read, plugins=tuple(read.plugins)) == trained


def test_what_is_not_there_is_left_out_and_steps_stand_beside():
    content = {"validation_due": True, "global_step": 3}
    replace(WHOLE, recall=None, converted=None).write(content)
    assert content["zoo"] == {
        "tokenizer": "abc",
        "train_length": 16,
        "tokens": 640,
        "tokens_per_step": 64,
        "data": {"train": "k"},
        "plugins": ["mine"],
    }
    read = Trained.read(content)
    assert (read.step, read.validation_due, read.recall) == (3, True, None)


@pytest.mark.parametrize("content", [{}, {"zoo": 3}, {"zoo": {"tokenizer": "abc", "tokens": 1}}])
def test_a_checkpoint_of_another_program_is_refused(content):
    assert Trained.read(content) is None
    with pytest.raises(CheckpointError, match=r"^last\.ckpt was not written by train\.py"):
        read_trained(content, Path("last.ckpt"))
