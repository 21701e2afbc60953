"""Passkey retrieval (Mohtashami and Jaggi 2023, arXiv:2305.16300): one number hidden in filler."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from zoo.data.recall.base import RecallTask
from zoo.data.recall.compose import Facts
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.samples import Question
from zoo.registry import RECALL_TASKS


@RECALL_TASKS.register("passkey")
@dataclass(frozen=True)
class Passkey(RecallTask):
    """Recall of a five-digit number that is stated once.

    The context has no other number, so there is no rank to score.
    """

    name: ClassVar[str] = "passkey"

    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        number = str(rng.randrange(10_000, 100_000))
        question = Question("What is the pass key? The pass key is", f" {number}")
        return Facts((f"The pass key is {number}. Remember it.\n",), (question,))
