"""Options that many attentions share: type, range and meaning of each, declared once.

An attention lists those that it has in its signature, with its own defaults: ``rope_theta: RopeTheta = 10000.0``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

LIMITS = {"ge": (">=", operator.ge), "gt": (">", operator.gt), "le": ("<=", operator.le), "lt": ("<", operator.lt)}


@dataclass(frozen=True)
class Option:
    """Meaning and range of an option, as an annotation beside its type.

    Attributes:
        meaning: what the option is, its unit included.
        ge: least number, called as the limits of ``annotated_types`` are; None for no limit.
        gt: number below all that are allowed; None for no limit.
        le: largest number; None for no limit.
        lt: number above all that are allowed; None for no limit.
    """

    meaning: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None


def limits(part: Any) -> list[tuple[str, float]]:
    """Limits of a number that a part of an annotation states, as ``("ge", 1)``: an Option, or one as ``Gt(0)``."""
    stated = [(limit, getattr(part, limit, None)) for limit in LIMITS]
    return [(limit, bound) for limit, bound in stated if bound is not None]


def allows(part: Any, value: Any) -> bool:
    """Whether a number is within the limits of a part of an annotation; None always is."""
    return value is None or all(LIMITS[limit][1](value, bound) for limit, bound in limits(part))


def bounds(parts: Iterable[Any]) -> str:
    """The limits behind "a number"."""
    stated = [f"{LIMITS[limit][0]} {bound}" for part in parts for limit, bound in limits(part)]
    return " ".join(["", " and ".join(stated)]) if stated else ""


KvHeads = Annotated[int | None, Option("key and value heads G, a divisor of the heads; None for one per head", ge=1)]
HeadDim = Annotated[int | None, Option("numbers D of each query and key; None for width / heads", ge=1)]
ValueDim = Annotated[int | None, Option("numbers E of each value; None for head_dim", ge=1)]
QkNorm = Annotated[bool, Option("RMS-normalize queries and keys per head, before the positions")]
Gate = Annotated[str, Option("output gate: none, linear, sigmoid or silu")]
RopeTheta = Annotated[float | None, Option("base of the rotary frequencies; None for no positions", gt=0)]
RopeFraction = Annotated[float, Option("part of each head that is rotated; the rest has no position", gt=0, le=1)]
OutputNorm = Annotated[str, Option("norm of the output before the gate: rms, or srms, which has no weight")]
ValueHeads = Annotated[int | None, Option("value heads, a multiple of the heads; None for as many", ge=1)]
Conv = Annotated[int, Option("tokens of the short convolution of queries, keys and values; 0 for none", ge=0)]
BetaMax = Annotated[float, Option("largest part of a key's value that is replaced, 1 or 2", gt=0, le=2)]
Products = Annotated[int, Option("steps of the delta rule that each token takes", ge=1)]
NormEps = Annotated[float, Option("added to the mean square in the norm of the output", gt=0)]
ChannelDecays = Annotated[str, Option("decay of each channel: softplus, or bounded, which is above -5")]
Correction = Annotated[float, Option("part of what the key reads that is taken from the output, at first", ge=0)]
DecayRank = Annotated[int, Option("rank of the projection to the decay", ge=1)]
Rank = Annotated[int | None, Option("rank of a projection; None for the published one", ge=1)]
Levels = Annotated[int, Option("levels with a weight of their own, the last also for all above", ge=1)]
