"""Loader workers that ignore signals to the whole process group: only their parent ends them, or its end."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

STOP_SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
)
_TELLS_SENDER = hasattr(signal, "sigwaitinfo")


class SteadyLoader(DataLoader):
    """DataLoader whose workers go on when a terminal or a scheduler signals the whole process group.

    The main process decides when to stop and still needs their batches for the step that it finishes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "worker_init_fn": obey_parent_only})

    def __iter__(self) -> Any:
        """Start the workers with signals held back, so that none comes before :func:`obey_parent_only`."""
        with held_back():
            return super().__iter__()


@contextmanager
def held_back() -> Iterator[None]:
    """Context manager that blocks stop signals until its end; forked children start with them blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def obey_parent_only(worker: int) -> None:
    """Makes a worker ignore every stop signal except a SIGTERM of its parent.

    torch ends a worker that does not answer by SIGTERM, so it must work. A worker whose parent is gone ends by itself.
    """
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if _TELLS_SENDER:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP_SIGNALS) - ({signal.SIGTERM} if _TELLS_SENDER else set()))


def _end_with_parent(parent: int) -> None:
    while True:
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
