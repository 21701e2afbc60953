"""Check on Triton IR that a kernel addresses memory in 64 bits.

A product of something that grows with the data (a program id, a loop counter, a loaded index) and a size or stride that
is an argument passes 2^31 on long inputs, and the address then wraps without an error. Such a product must be taken in
64 bits. Offsets inside a tile may have 32.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_VALUE = re.compile(r"%[\w$.-]+")
_ASSIGNED = re.compile(r"^\s*(%[\w$.-]+)(?::\d+)? = ([\w.]+)(.*)$")
_ARGUMENT = re.compile(r"(%[\w$.-]+): i(?:32|64)\b")
_LOCATION = re.compile(r"\bloc\((?:[^()]|\([^()]*\))*\)")
PLACE, SIZE, SHORT_PRODUCT = "place", "size", "short product"  # what a value was made from


class Offsets(NamedTuple):
    """Number of pointer offsets in 64 bits, in 32 bits, and of those made from a 32-bit product that can overflow."""

    wide: int = 0
    narrow: int = 0
    overflowing: int = 0

    def faults(self) -> list[str]:
        """Lists why large inputs would be addressed wrongly."""
        found = []
        if self.narrow and not self.wide:
            found.append(f"none of its {self.narrow} pointer offsets is in 64 bits")
        if self.overflowing:
            found.append(f"{self.overflowing} pointer offsets come from a 32-bit product of a position and a stride")
        return found


def count_offsets(ttir: str) -> Offsets:
    """Counts the pointer offsets in the text of a Triton IR module, in which every call is inlined."""
    made: dict[str, set[str]] = {}
    wide = narrow = overflowing = 0
    for line in ttir.splitlines():
        line = _LOCATION.sub("", line)
        if "tt.func" in line:
            made = {name: {SIZE} for name in _ARGUMENT.findall(line)}
        elif "scf.for" in line or "scf.while" in line or line.lstrip().startswith("^"):
            _enter(line, made)
        elif match := _ASSIGNED.match(line):
            name, operation, rest = match.groups()
            operands = [made.get(operand, set()) for operand in _VALUE.findall(rest)]
            made[name] = _result(operation, operands, rest)
            if operation == "tt.addptr":
                is_wide = bool(re.search(r"i64>?\s*$", rest))
                wide, narrow = wide + is_wide, narrow + (not is_wide)
                overflowing += SHORT_PRODUCT in operands[1]
    return Offsets(wide, narrow, overflowing)


def _enter(line: str, made: dict[str, set[str]]) -> None:
    """Loop counters and what loops carry are places; the results of a loop are too."""
    for name in re.findall(r"(%[\w$.-]+)(?::\d+)? =|(%[\w$.-]+):", line):
        made[name[0] or name[1]] = {PLACE}


def _result(operation: str, operands: list[set[str]], rest: str) -> set[str]:
    if operation in ("tt.get_program_id", "tt.load", "scf.if"):
        return {PLACE}
    union = set().union(*operands) if operands else set()
    if operation != "arith.muli":
        return union
    if re.search(r"i64>?\s*$", rest):
        return union - {SHORT_PRODUCT}  # an index such as batch * heads + head, whose stride is applied here
    first, second = operands
    crosses = (PLACE in first and SIZE in second) or (SIZE in first and PLACE in second)
    return union | {SHORT_PRODUCT} if crosses else union
