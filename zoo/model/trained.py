"""Metadata of training in a checkpoint: the reader and the writer of its section ``zoo``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

SECTION = "zoo"
BESIDE = {"step": "global_step", "validation_due": "validation_due"}  # what Lightning and callbacks write, by attribute


@dataclass(frozen=True)
class Trained:
    """Metadata that training writes into a checkpoint.

    Attributes:
        tokenizer: fingerprint of the tokenizer.
        train_length: input tokens of a training sequence.
        tokens: tokens of the steps so far.
        tokens_per_step: tokens of an optimizer step, over all devices.
        data: content address of the token store of each split, and of the recall samples.
        plugins: external packages that the decoder needs.
        recall: options of the recall tasks that were trained on; None for text alone.
        converted: run from which the weights were converted, and how; None for weights as they were trained.
        step: optimizer steps so far.
        validation_due: whether the validation of that step is still to be done.
    """

    tokenizer: str
    train_length: int
    tokens: int
    tokens_per_step: int = 0
    data: Mapping[str, str] = field(default_factory=dict)
    plugins: Sequence[str] = ()
    recall: Mapping[str, Any] | None = None
    converted: Mapping[str, Any] | None = None
    step: int = 0
    validation_due: bool = False

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Trained | None:
        """Reads the section from the content of a checkpoint file; None if training did not write it."""
        section = content.get(SECTION)
        if not isinstance(section, dict):
            return None
        beside = {name: content[key] for name, key in BESIDE.items() if key in content}
        known = {one.name: section[one.name] for one in fields(cls) if one.name in section} | beside
        try:
            return cls(**known)
        except TypeError:
            return None

    def write(self, content: dict[str, Any]) -> None:
        """Adds the section to the content of a checkpoint, as plain data."""
        section = {name: value for name, value in asdict(self).items() if name not in BESIDE and value is not None}
        content[SECTION] = section | {"plugins": list(self.plugins)}
