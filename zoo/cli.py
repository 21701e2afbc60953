"""Command-line basics that all programs share: errors in one line, broken pipes, and the choice of a device.

Imports neither torch nor anything that takes long, so that a Ctrl-C during imports is answered too.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from zoo.ranks import leave_word, this_launch, word_was_left

if TYPE_CHECKING:
    import torch

COMMAND: list[str] = []  # words of the command line before the arguments, as train in attention-zoo train
USAGE = 2
INTERRUPTED = 130
NO_READER = (errno.EPIPE, errno.EIO)
NO_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
REMEDIES = {
    errno.EACCES: "ask for the right to use it (chmod), or give a copy",
    errno.EISDIR: "expected a file, and not a folder",
    errno.ENOTDIR: "a part of the path is a file, and not a folder",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.EROFS: "give a place that can be written to",
}


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Context manager that prints a user's error as one line on stderr and exits with status 2; Ctrl-C exits with 130.

    A user's error is any ValueError (ConfigError, CheckpointError, DataError, ScheduleError and plain ones), a file
    that is not found or cannot be used, a full disk, and memory that is short. ``ZOO_DEBUG=1`` shows the traceback
    instead. Output to a closed pipe, as after ``| head -1``, is dropped.
    """
    try:
        sys.stdout, sys.stderr = _for_any_reader(sys.stdout, 1), _for_any_reader(sys.stderr, 2)
        yield
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if not _is_users(error) or os.environ.get("ZOO_DEBUG", "0") not in ("", "0"):
            raise
        refuse(_out_of_memory(error) or _of_file(error) or _one_line(str(error)) or type(error).__name__)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "zoo":
            raise
        refuse(
            f"{error.name} is missing: install this project and what it needs with pip install -c constraints.txt -e . "
            "in its folder."
        )
    except KeyboardInterrupt:
        if this_launch().speaks:
            print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None


def answer_ctrl_c() -> None:
    """Makes Ctrl-C end the process with one line and status 130 while a script's slow imports run."""

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        print("interrupted", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)

    sys.excepthook = say


def _is_users(error: Exception) -> bool:
    """Whether a user can act on an error."""
    if isinstance(error, (ValueError, *NO_FILE)) or _out_of_memory(error):
        return True
    return isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC)


def _of_file(error: Exception) -> str | None:
    """What to say of a file that the system refuses; None for other errors, and those with a message of their own."""
    name = error.filename if isinstance(error, OSError) and error.strerror else None
    if not isinstance(error, OSError) or not isinstance(name, (str, bytes, os.PathLike)):
        return None
    remedy = REMEDIES.get(error.errno or 0, "check the path")
    return f"{_one_line(os.fsdecode(name))}: {error.strerror}; {remedy}."


def _one_line(text: str) -> str:
    """Text without line breaks; blanks stay, they may be those of a name."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def _out_of_memory(error: Exception) -> str | None:
    """What to say where memory is short, None where it is not."""
    text = " ".join(str(error).split())
    torch = sys.modules.get("torch")  # without it nothing of it can be short
    allocator = isinstance(error, RuntimeError) and re.search(r"can't allocate memory|not enough memory", text)
    if not (allocator or isinstance(error, (MemoryError, torch.OutOfMemoryError) if torch else MemoryError)):
        return None
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    return (
        f"out of memory{f' (no {wanted[1]} were free)' if wanted else ''}: use fewer sequences at a time "
        "(trainer.micro_batch_size, task.batch_tokens), shorter ones (data.length), or a smaller model."
    )


def refuse(message: str) -> NoReturn:
    """Prints an error and exits with status 2; of several processes with the same error only the first prints it."""
    launch = this_launch()
    if launch.speaks:
        print(f"error: {message}", file=sys.stderr, flush=True)
        leave_word()
    elif not word_was_left():
        print(f"rank {launch.rank}: error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(USAGE) from None


class _AnyReader(io.FileIO):
    """A stream that takes what is written to it, whether or not its reader is still there."""

    def write(self, data: Any) -> int:
        """Write, or drop what nobody reads any more."""
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in NO_READER:
                raise
            return memoryview(data).nbytes


def _for_any_reader(stream: TextIO, number: int) -> TextIO:
    """The stream of this process, so that a pipe that is closed ends nothing; others, as tests have, as they are."""
    if stream not in (sys.__stdout__, sys.__stderr__) or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    raw = io.BufferedWriter(_AnyReader(number, "w", closefd=False))
    return io.TextIOWrapper(raw, stream.encoding, stream.errors, line_buffering=stream.line_buffering)


def choose_device(name: str) -> torch.device:
    """Returns a device by name; ``auto`` is the first GPU if there is one.

    Raises:
        ValueError: if there is no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name} cannot be used here: expected auto, cpu or cuda.") from error
    return device
