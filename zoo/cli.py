"""What the command-line programs share: errors a user can act on, without a traceback, and the choice of a device."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

USAGE = 2
INTERRUPTED = 130


@contextmanager
def friendly_errors() -> Iterator[None]:
    """Print a user's error as one line on stderr and exit with status 2; Ctrl-C exits with 130.

    A user's error is any ValueError (ConfigError, CheckpointError, DataError, ScheduleError and plain ones), a file
    that is not found, a full disk, and memory that is short. ``ZOO_DEBUG=1`` shows the traceback instead.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        if not _is_users(error) or os.environ.get("ZOO_DEBUG", "0") not in ("", "0"):
            raise
        message = _out_of_memory(error) or " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr, flush=True)
        raise SystemExit(USAGE) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED) from None


def _is_users(error: Exception) -> bool:
    """Whether a user can act on an error."""
    if isinstance(error, (ValueError, FileNotFoundError)) or _out_of_memory(error):
        return True
    return isinstance(error, OSError) and error.errno == errno.ENOSPC


def _out_of_memory(error: Exception) -> str | None:
    """What to say where memory is short, None where it is not."""
    text = " ".join(str(error).split())
    allocator = isinstance(error, RuntimeError) and re.search(r"can't allocate memory|not enough memory", text)
    if not (allocator or isinstance(error, (MemoryError, torch.OutOfMemoryError))):
        return None
    wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
    return (
        f"out of memory{f' (no {wanted[1]} were free)' if wanted else ''}: use fewer sequences at a time "
        "(trainer.micro_batch_size, task.batch_tokens), shorter ones (data.length), or a smaller model."
    )


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is the first GPU if there is one.

    Raises:
        ValueError: if there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device={name} cannot be used here: expected auto, cpu or cuda.") from error
    return device
