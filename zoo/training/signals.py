"""Signals that stop a run: at once while it prepares, after the current step once it trains."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from zoo.data.workers import STOP_SIGNALS

AGAIN = 1.0  # seconds: a launcher passes the terminal's Ctrl-C on, which is no second one
PATIENCE = 10.0  # seconds that compiled code, say a wait for other processes, may take to come back
SIGINT_STATUS = 128 + signal.SIGINT
_END = b"\0"


class Interrupted(BaseException):
    """Raised when a signal stops the run; finished steps are saved, and ``step`` is None before the first one."""

    def __init__(self, number: int, step: int | None = None) -> None:
        where = "before the first step" if step is None else f"at step {step}"
        super().__init__(f"stopped by {signal.Signals(number).name} {where}")
        self.number, self.step = number, step


class StopSignals:
    """Context manager that listens for signals while a run prepares and trains.

    ``received`` is the signal that came first. Until :meth:`defer` it raises Interrupted wherever the process is; after
    that the training loop looks at it between two batches. A second Ctrl-C ends the process at once.

    Args:
        speaks: print what a signal leads to.
    """

    def __init__(self, speaks: bool = True) -> None:
        self.speaks = speaks
        self.received: int | None = None
        self.deferred = False
        self._handled = threading.Event()
        self._previous: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
                    self._previous[number] = signal.signal(number, self._receive)
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._earlier_pipe = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
        if self._pipe is not None:
            signal.set_wakeup_fd(self._earlier_pipe)
            os.write(self._pipe[1], _END)
            os.close(self._pipe[1])
            self._pipe = None

    def defer(self) -> None:
        """From now on only records signals in ``received``, for the training loop, which has something to save."""
        self.deferred = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            return
        self.received = number
        self._handled.set()
        if not self.deferred:
            raise Interrupted(number)
        self._say(f"{signal.Signals(number).name}: saving as soon as this step is done; Ctrl-C again ends at once")

    def _watch(self, pipe: int) -> None:
        """Read the signals as they come, also while the main thread is in compiled code and cannot handle them."""
        first: float | None = None
        while (byte := os.read(pipe, 1)) and byte != _END:
            number = byte[0]
            if number not in self._previous:
                continue
            if first is None:
                first = time.monotonic()
                threading.Timer(PATIENCE, self._give_up, (number,)).start()
            elif number == signal.SIGINT and time.monotonic() - first > AGAIN:
                self._say("interrupted")
                os._exit(SIGINT_STATUS)
        os.close(pipe)

    def _give_up(self, number: int) -> None:
        if not self._handled.is_set() and not self.deferred and self._pipe is not None:
            self._say(str(Interrupted(number)))
            os._exit(128 + number)

    def _say(self, text: str) -> None:
        if self.speaks:
            try:
                os.write(2, f"{text}\n".encode())  # print() must not be entered twice
            except OSError:  # the terminal is gone
                return
