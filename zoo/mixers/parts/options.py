"""Options that many attentions share: the type, the range and the meaning of each, written down once.

An attention lists those that it has in its signature, with defaults of its own: ``rope_theta: RopeTheta = 10000.0``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any


@dataclass(frozen=True)
class Option:
    """What an annotation says beside the type.

    Attributes:
        meaning: what the option is, its unit included.
        least: smallest number that is allowed. above: number that all are above. most: largest. None for no bound.
    """

    meaning: str
    least: float | None = None
    above: float | None = None
    most: float | None = None

    def allows(self, value: Any) -> bool:
        """Whether a number is in the range; None always is."""
        if value is None:
            return True
        low = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return low and (self.most is None or value <= self.most)

    def bounds(self) -> str:
        """The range behind "a number"."""
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
ValueHeads = Annotated[int | None, Option("value heads, a multiple of the heads; None for as many", least=1)]
Conv = Annotated[int, Option("tokens of the short convolution of queries, keys and values; 0 for none", least=0)]
BetaMax = Annotated[float, Option("largest part of a key's value that is replaced, 1 or 2", above=0, most=2)]
Products = Annotated[int, Option("steps of the delta rule that each token takes", least=1)]
NormEps = Annotated[float, Option("added to the mean square in the norm of the output", above=0)]
DecayRank = Annotated[int, Option("rank of the projection to the decay", least=1)]
Rank = Annotated[int | None, Option("rank of a projection; None for the published one", least=1)]
Levels = Annotated[int, Option("levels with a weight of their own, the last also for all above", least=1)]
