"""The numbers that are measured, and what they are about."""

from __future__ import annotations

from typing import Any, NamedTuple

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
CHECK, REPEATS = "error / allowance", "arrays that differ"  # metrics of correctness, which hold in a dry run too


class Shape(NamedTuple):
    """Batch, tokens, query heads, head width, and key heads if they are fewer."""

    batch: int
    length: int
    heads: int
    width: int
    groups: int = 0

    def __str__(self) -> str:
        keys = "" if self.key_heads == self.heads else f" G{self.groups}"
        return f"B{self.batch} T{self.length} H{self.heads}{keys} D{self.width}"

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.groups or self.heads

    @property
    def numbers(self) -> int:
        """Numbers of an array of queries."""
        return self.batch * self.length * self.heads * self.width


class Timing(NamedTuple):
    """Milliseconds of one call: median, smallest and largest of all samples."""

    median: float
    low: float
    high: float


class Record(NamedTuple):
    """One number, or the row that numbers are about, which has no metric.

    ``timing`` is None of what is no matter of time. ``target`` is a bound such as ">= 2"; ``reached`` says whether the
    value keeps it.
    """

    name: str
    shape: Shape
    dtype: str
    implementation: str
    direction: str
    timing: Timing | None = None
    metric: str = ""
    value: float = 0.0
    unit: str = ""
    target: str | None = None
    reached: bool | None = None
    piece: str = ""

    def to_json(self) -> dict[str, Any]:
        """Converts it for a file."""
        return self._asdict() | {"shape": self.shape._asdict(), "timing": self.timing and self.timing._asdict()}

    @classmethod
    def from_json(cls, x: dict[str, Any]) -> Record:
        """Converts it back."""
        return cls(**x | {"shape": Shape(**x["shape"]), "timing": x["timing"] and Timing(**x["timing"])})


def reaches(value: float, target: str) -> bool:
    """Whether a value keeps a bound."""
    relation, bound = target.split()
    return value >= float(bound) if relation == ">=" else value <= float(bound)
