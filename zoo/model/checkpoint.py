"""Checkpoint files: written atomically, and read without running code from them."""

from __future__ import annotations

import errno
import io
import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.config import require_plugins
from zoo.files import replace_file
from zoo.model.decoder import Decoder, DecoderConfig
from zoo.model.trained import Trained
from zoo.plugins import import_plugins
from zoo.registry import nothing_imported

CHECKPOINTS = "checkpoints"
FULL = (errno.ENOSPC, errno.EDQUOT)
PREFIX = "decoder."
DAMAGE = (
    RuntimeError,
    EOFError,
    OSError,
    KeyError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


class CheckpointError(ValueError):
    """Raised for a checkpoint that is missing, damaged, or not one of this project."""


def find_checkpoint(path: str | Path, name: str = "last") -> Path:
    """Returns the file of a run folder's checkpoint ``name`` (``last``, ``best``, ``step-N``).

    A ``path`` that is a file is returned itself.

    Raises:
        CheckpointError: if there is none; the message lists what exists.
    """
    path = Path(path)
    if path.is_file():
        return path
    file = path / CHECKPOINTS / f"{name}.ckpt"
    if file.is_file():
        return file
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist: expected a run folder or a checkpoint file.")
    found = sorted(p.stem for p in (path / CHECKPOINTS).glob("*.ckpt"))
    exist = f"it has {', '.join(found)}" if found else "it has none yet"
    raise CheckpointError(f"{path} has no checkpoint {name!r}: {exist}.")


def read_checkpoint(file: str | Path) -> dict[str, Any]:
    """Reads a checkpoint file, with tensors on the CPU; only plain data and tensors are unpickled.

    Raises:
        CheckpointError: if the file is damaged, holds anything else, or comes from another program.
    """
    try:
        with zipfile.ZipFile(file) as archive:  # torch.load does not compare the checksums of its parts
            if (part := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"checksum of {part} is wrong")
        content = _load(file)
    except DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} cannot be read as a checkpoint ({reason}): it is damaged or holds more than plain data. "
            f"Use another checkpoint of the run."
        ) from error
    if not isinstance(content, dict) or "decoder" not in content or "state_dict" not in content:
        raise CheckpointError(f"{file} is not a checkpoint of this project: it has no decoder configuration.")
    return content


def decoder_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of the decoder by name, from the content of a checkpoint."""
    weights = content["state_dict"].items()
    return {name.removeprefix(PREFIX): value for name, value in weights if name.startswith(PREFIX)}


def read_trained(content: Mapping[str, Any], file: Path) -> Trained:
    """Reads from a checkpoint's content the metadata of the training that wrote it; ``file`` is for messages.

    Raises:
        CheckpointError: if training did not write it.
    """
    trained = Trained.read(content)
    if trained is None:
        raise CheckpointError(f"{file} was not written by train.py: it does not say what it was trained on.")
    return trained


def _load(file: str | Path) -> Any:
    """Mapped where PyTorch can: it opens no name that is not UTF-8."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        with Path(file).open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def load(
    path: str | Path,
    checkpoint: str = "last",
    device: str | torch.device = "cpu",
    plugins: Sequence[str] = (),
) -> Decoder:
    """Loads the decoder of a run folder or of a checkpoint file, in evaluation mode.

    Args:
        path: run folder or checkpoint file.
        checkpoint: name of the checkpoint in a run folder: ``last``, ``best`` or ``step-N``.
        device: device of the decoder.
        plugins: external packages to import. A run that needs others is refused: none is imported because a file names
            it.

    Raises:
        CheckpointError: if it cannot be found or read.
        ConfigError: if a plugin cannot be imported, or the run needs one that is not.
    """
    import_plugins(plugins)
    file = find_checkpoint(path, checkpoint)
    content = read_checkpoint(file)
    trained = Trained.read(content)
    require_plugins(trained.plugins if trained else ())
    try:
        with nothing_imported():
            decoder = Decoder(DecoderConfig(**content["decoder"]))
        decoder.load_state_dict(decoder_weights(content))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} does not fit its own configuration: {error}") from error
    return decoder.to(device).eval()


class _Reporting(io.FileIO):
    """A file that keeps the error of a write: torch.save turns it into a RuntimeError about its own archive."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
        left = memoryview(data).cast("B")
        size = left.nbytes
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
            raise
        return size


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically: beside ``path``, synced to the disk, then renamed.

    Raises:
        CheckpointError: if the disk is full or not writable; the previous file stays.
    """
    files: list[_Reporting] = []

    def write(unfinished: Path) -> None:
        with _Reporting(unfinished, "wb") as file:
            files.append(file)
            torch.save(content, file)

    try:
        replace_file(path, write, durable=True)
    except (OSError, RuntimeError) as error:
        cause = files[0].error if files and files[0].error else error
        if not isinstance(cause, OSError):
            raise
        kept = f"the previous {path.name} is untouched" if path.is_file() else "no earlier one exists"
        todo = "Free some space, then continue" if cause.errno in FULL else "Mend that, then continue"
        raise CheckpointError(f"{path} could not be written ({cause}); {kept}. {todo} with resume=.") from error
