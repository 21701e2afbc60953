"""Search for the integer at which a quantity comes nearest to a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

LARGEST = 1 << 20  # no larger value is tried
SCAN = 256  # values tried in a row where only trying shows which are accepted
FLAT = 3  # doublings without any change, after which no more is expected


class IntegerSearch:
    """Search over multiples of ``step``.

    The quantity should only grow, or only shrink, with the value: then the nearest of all is among those measured.
    Where it is seen to do both, all values in the range are measured if they are few; :attr:`complete` is False if not.

    Args:
        measure: the quantity at a value; None where the value is not accepted.
        target: what the quantity should be.
        step: distance of the values that are tried.
    """

    def __init__(self, measure: Callable[[int], float | None], target: float, step: int = 1) -> None:
        self.target, self.step, self.complete = target, step, True
        self._measure = measure
        self._seen: dict[int, float | None] = {}

    @property
    def measured(self) -> dict[int, float]:
        """Quantity at every accepted value that was tried, by rising value."""
        return {value: found for value, found in sorted(self._seen.items()) if found is not None}

    @property
    def nearest(self) -> tuple[int, float] | None:
        """Value at which the quantity is nearest to the target, and the quantity; None if none was accepted."""
        return min(self.measured.items(), key=lambda pair: abs(pair[1] - self.target), default=None)

    def run(self, start: int | None = None) -> None:
        """Searches, from ``start`` if it is given: a value near which the answer is expected."""
        smallest = self._accepted(range(self.step, LARGEST + 1, self.step))
        if smallest is None:
            return
        ends = self._bracket(smallest, smallest if start is None else start)
        if ends is not None:
            self._narrow(*ends)
        found = list(self.measured.values())
        if not (found == sorted(found) or found == sorted(found, reverse=True)):
            self._measure_all()

    def _at(self, value: int) -> float | None:
        if value not in self._seen:
            self._seen[value] = self._measure(value)
        return self._seen[value]

    def _excess(self, value: int) -> float:
        found = self._at(value)
        assert found is not None
        return found - self.target

    def _accepted(self, values: Iterable[int]) -> int | None:
        """The first value that is accepted."""
        return next((v for v in islice(values, SCAN) if self._at(v) is not None), None)

    def _bracket(self, smallest: int, start: int) -> tuple[int, int] | None:
        """Two values with the target between them, below ``start`` or by doubling from it; None if there are none."""
        low = smallest
        near = max(start // self.step * self.step, smallest)
        high = self._accepted(range(near, smallest - 1, -self.step)) or smallest
        flat = 0
        while self._excess(low) * self._excess(high) > 0:
            rise = self._excess(high) - self._excess(low)
            if rise * self._excess(high) > 0:  # moves away from the target
                return None
            following = self._beyond(high)
            if following is None:
                return None
            low, high = high, following
            flat = flat + 1 if self._excess(low) == self._excess(high) else 0
            if flat == FLAT:
                return None
        return low, high

    def _beyond(self, value: int) -> int | None:
        """An accepted value up to twice as large, the largest ones first; if there is none, the next one."""
        span = value
        while span > 0:
            top = min(value + span, LARGEST) // self.step * self.step
            found = self._accepted(range(top, value, -self.step))
            if found is not None:
                return found
            span //= 2
        return self._accepted(range(value + self.step, LARGEST + 1, self.step))

    def _narrow(self, low: int, high: int) -> None:
        """Take the straight line between the ends and their middle in turn, until nothing is left between them."""
        straight = True
        while 0 not in (self._excess(low), self._excess(high)):
            share = self._excess(low) / (self._excess(low) - self._excess(high)) if straight else 0.5
            value = self._accepted(self._outward(low, high, share))
            if value is None:
                return
            low, high = (low, value) if self._excess(low) * self._excess(value) <= 0 else (value, high)
            straight = not straight

    def _outward(self, low: int, high: int, share: float) -> Iterator[int]:
        """Values strictly between two others, from a part of the way outward."""
        count = (high - low - 1) // self.step
        middle = min(max(int((high - low) * share) // self.step, 1), count)
        for distance in range(count):
            for index in (middle - distance, middle + distance):
                if 1 <= index <= count:
                    yield low + index * self.step

    def _measure_all(self) -> None:
        values = range(min(self._seen), max(self._seen) + 1, self.step)
        self.complete = len(values) <= SCAN
        if self.complete:
            for value in values:
                self._at(value)
