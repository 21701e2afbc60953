"""Options that many attentions share: type, range and meaning of each, declared once.

An attention lists those that it has in its signature, with its own defaults: ``rope_theta: RopeTheta = 10000.0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Option:
    """Meaning and range of an option, as an annotation beside its type.

    Attributes:
        meaning: what the option is, its unit included.
        least: smallest allowed number; None for no bound.
        above: exclusive lower bound; None for no bound.
        most: largest allowed number; None for no bound.
    """

    meaning: str
    least: float | None = None
    above: float | None = None
    most: float | None = None

    def allows(self, value: Any) -> bool:
        """Returns whether a number is in the range; None always is."""
        if value is None:
            return True
        low = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return low and (self.most is None or value <= self.most)

    def bounds(self) -> str:
        """Returns the range in words, to follow "a number"."""
        signs = (">=", self.least), (">", self.above), ("<=", self.most)
        limits = [f"{sign} {limit}" for sign, limit in signs if limit is not None]
        return "".join([" ", " and ".join(limits)]) if limits else ""


KvHeads = Annotated[int | None, Option("key and value heads G, a divisor of the heads; None for one per head", least=1)]
HeadDim = Annotated[int | None, Option("numbers D of each query and key; None for width / heads", least=1)]
ValueDim = Annotated[int | None, Option("numbers E of each value; None for head_dim", least=1)]
QkNorm = Annotated[bool, Option("RMS-normalize queries and keys per head, before the positions")]
Gate = Annotated[str, Option("output gate: none, linear, sigmoid or silu")]
RopeTheta = Annotated[float | None, Option("base of the rotary frequencies; None for no positions", above=0)]
RopeFraction = Annotated[float, Option("part of each head that is rotated; the rest has no position", above=0, most=1)]
OutputNorm = Annotated[str, Option("norm of the output before the gate: rms, or srms, which has no weight")]
