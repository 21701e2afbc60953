"""Opening of a run folder: configuration, decoder and tokenizer, checked to belong together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from zoo.config import ConfigError, load_run_config, moved_data, to_dict
from zoo.data import load_tokenizer, tokenizer_fingerprint, vocabulary_size
from zoo.data.sources.build import build_source
from zoo.data.sources.moved import check_moved
from zoo.model.checkpoint import CheckpointError, find_checkpoint, load, read_checkpoint, read_trained
from zoo.model.decoder import Decoder
from zoo.model.trained import Trained
from zoo.paths import expand
from zoo.runs.run_folder import RESULTS
from zoo.runs.subject import OwnText, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class OpenedRun:
    """A run that can be evaluated.

    Attributes:
        folder: the run folder.
        checkpoint: name of the checkpoint.
        file: file of the checkpoint.
        config: configuration of the run.
        decoder: the decoder.
        tokenizer: its tokenizer.
        trained: metadata of the training in the checkpoint.
        sha256: hash of the checkpoint file as it was read.
        out: folder of results; None for RUN_DIR/eval.
    """

    folder: Path
    checkpoint: str
    file: Path
    config: DictConfig
    decoder: Decoder
    tokenizer: PreTrainedTokenizerFast
    trained: Trained
    sha256: str
    out: Path | None = None

    @property
    def results(self) -> Path:
        """Folder of result files, plots and finished cells."""
        return self.out or self.folder / RESULTS

    @property
    def document_token(self) -> int:
        """Id of the token that stands before every document."""
        return self.subject.document_token

    @property
    def device(self) -> torch.device:
        """Device of the decoder."""
        return self.subject.device

    @property
    def subject(self) -> Subject:
        """Model, tokenizer and text of the run, as a task sees them."""
        data, trained = self.config.data, self.trained
        text = OwnText(str(data.get("name", "data")), to_dict(data.source), data.cache_dir, trained.data)
        return Subject(self.decoder, self.tokenizer, trained.train_length, text, bool(trained.recall))


def open_run(
    run: str | None,
    checkpoint: str = "last",
    device: str | torch.device = "cpu",
    data_path: str | None = None,
    cache_dir: str | None = None,
) -> OpenedRun:
    """Opens the run in folder ``run``, with the checkpoint ``last``, ``best`` or ``step-N``.

    Args:
        run: the folder.
        checkpoint: name of the checkpoint.
        device: device of the decoder.
        data_path: present path of the run's data, if they have moved; their content is checked.
        cache_dir: folder for token stores, in place of that of training.

    Raises:
        ConfigError: if no run is given, or the folder is not one.
        CheckpointError: if the checkpoint is missing, damaged, or of another tokenizer.
        DataError: if the tokenizer cannot be read.
    """
    if not run:
        raise ConfigError("run is not set: expected the folder that train.py wrote, as in run=RUN_DIR.")
    folder = expand(run)
    config = load_run_config(folder)
    own_cache = config.data.get("cache_dir")
    config.data = moved_data(config.data, data_path, cache_dir)
    file = find_checkpoint(folder, checkpoint)
    sha256 = file_sha256(file)
    content = read_checkpoint(file)
    trained = read_trained(content, file)
    tokenizer = load_tokenizer(folder / "tokenizer")
    _check_tokenizer(folder, file, content["decoder"]["vocab_size"], trained.tokenizer, tokenizer)
    if data_path is not None:
        caches = [own_cache, config.data.cache_dir]
        check_moved(build_source(to_dict(config.data.source)), trained.data, tokenizer, caches[-1], caches)
    decoder = load(file, device=device)
    if file_sha256(file) != sha256:
        raise CheckpointError(f"{file} was replaced while it was read: start again, once training has stopped.")
    return OpenedRun(folder, checkpoint, file, config, decoder, tokenizer, trained, sha256)


def _check_tokenizer(
    folder: Path, file: Path, vocab_size: int, fingerprint: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    remedy = f"Put the tokenizer the run was trained with back into {folder / 'tokenizer'}, or use another checkpoint."
    if tokenizer_fingerprint(tokenizer) != fingerprint:
        raise CheckpointError(f"{file} was trained with another tokenizer than that of the run folder. {remedy}")
    if vocab_size < vocabulary_size(tokenizer):
        raise CheckpointError(
            f"{file} has a vocabulary of {vocab_size}, its tokenizer needs {vocabulary_size(tokenizer)}. {remedy}"
        )


def file_sha256(file: Path) -> str:
    """Returns the SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**22):
            digest.update(block)
    return digest.hexdigest()
