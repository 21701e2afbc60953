"""What a call may take, judged by those before it."""

from __future__ import annotations

from typing import NamedTuple

CALLS = 4  # of a slow function: one to warm up, two samples, one for its memory


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
