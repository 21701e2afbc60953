"""The time of a piece: what a call may take, judged by those before it, and an end for a call that does not end."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NamedTuple

CALLS = 4  # of a slow function: one to warm up, two samples, one for its memory
KILLED = 124  # status of a process that was ended, as the command timeout has it


class OutOfTime(BaseException):
    """The minutes of a piece are over. No Exception, so that no library takes it for an error of its own."""


class Cost(NamedTuple):
    """Seconds that the first call takes beside its work, which is compiling mostly, and seconds of a call."""

    first: float = 0.0
    call: float = 0.0

    @property
    def whole(self) -> float:
        """Seconds that it takes to measure at least."""
        return self.first + CALLS * self.call


class Pace:
    """What each implementation took in its last row, and what it will take if its time grows with its work."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, Cost]] = {}

    def cost(self, who: str, work: float | None) -> Cost:
        """What ``work``, in any unit, may cost; nothing for an implementation that was never measured."""
        if who not in self._known or work is None:
            return Cost()
        before, cost = self._known[who]
        return Cost(cost.first, cost.call * work / before)

    def learn(self, who: str, work: float | None, first: float, call: float) -> None:
        """Remember the seconds of the first and of a later call."""
        if work:
            self._known[who] = work, Cost(max(0.0, first - call), call)


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime inside when the seconds are over, as soon as Python has a say.

    A call that waits for a GPU is not interrupted before it returns. Outside the main thread, and where there are no
    signals, nothing happens.
    """
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if not possible or not 0 < seconds < math.inf:
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    begin, handler = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    other, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if other:  # the alarm that was set before goes on
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, other - (time.monotonic() - begin)))


@contextlib.contextmanager
def killed_after(seconds: float) -> Iterator[None]:
    """End the process when the seconds are over, even while it waits for a GPU that does not answer."""
    timer = threading.Timer(seconds, os._exit, [KILLED])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
