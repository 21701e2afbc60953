"""Subject of an evaluation: a model with its tokenizer, and the text that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from zoo.model.decoder import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class OwnText:
    """Data that a model was trained on, and the folder of token stores.

    Attributes:
        name: name of the data set.
        source: options of the source, see :func:`zoo.data.sources.build.build_source`.
        cache_dir: folder for token stores and samples.
        keys: key of the token store of each split in training.
    """

    name: str
    source: Mapping[str, Any]
    cache_dir: str
    keys: Mapping[str, str]


@dataclass(frozen=True)
class Subject:
    """Model under evaluation, with everything that a task may know of it.

    Attributes:
        decoder: the model.
        tokenizer: tokenizer of the model.
        train_length: tokens of a sequence in training.
        text: data that the model was trained on.
        recall: whether recall tasks were part of the training.
    """

    decoder: Decoder
    tokenizer: PreTrainedTokenizerFast
    train_length: int
    text: OwnText
    recall: bool = False

    @property
    def document_token(self) -> int:
        """Id of the token that stands before every document."""
        token = self.tokenizer.eos_token_id
        assert isinstance(token, int)
        return token

    @property
    def device(self) -> torch.device:
        """Device of the decoder."""
        return self.decoder.head.weight.device
