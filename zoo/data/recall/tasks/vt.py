"""Variable tracking: the number that a variable holds after a chain of copies (idea: RULER, arXiv:2404.06654)."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from zoo.data.recall.base import RecallTask
from zoo.data.recall.compose import Facts
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.lists import ask_list, check_least
from zoo.data.recall.samples import Question, RecallError
from zoo.registry import RECALL_TASKS

ASKS = ("number", "names")
LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # without vowels, so that no name is a word
NAMES = len(LETTERS) ** 3
NUMBERS = range(10_000, 100_000)


@RECALL_TASKS.register("vt")
@dataclass(frozen=True)
class VariableTracking(RecallTask):
    """Chains of assignments, "VAR XKQ = 48213." and then "VAR ZPL = VAR XKQ.", in order and mixed with each other.

    Attributes:
        hops: number of copies after the first assignment of each chain.
        chains: number of chains, one of which, at random, is asked for.
        ask: ``number``: the number of the last variable of the chain; the wrong values are the numbers of the other
            chains. ``names``: the names of all variables that hold a number, in order of assignment; the wrong values
            are all other variables.
    """

    hops: int = 2
    chains: int = 2
    ask: str = "number"

    name: ClassVar[str] = "vt"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "hops2": {},
        "hops1": {"hops": 1},
        "hops4": {"hops": 4},
        "names": {"ask": "names"},
    }

    @property
    def has_depth(self) -> bool:
        """False: a chain of facts is asked for."""
        return False

    def __post_init__(self) -> None:
        check_least(self.name, 1, hops=self.hops)
        check_least(self.name, 2, chains=self.chains)
        if self.ask not in ASKS:
            raise RecallError(f"{self.name}: ask={self.ask!r}: expected one of {', '.join(ASKS)}.")
        if self.chains * (self.hops + 1) > NAMES:
            raise RecallError(
                f"{self.name}: chains={self.chains} with hops={self.hops}: expected at most {NAMES} variables in all."
            )

    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        size = self.hops + 1
        codes = rng.sample(range(NAMES), self.chains * size)
        names = [_name(code) for code in codes]
        numbers = rng.sample(NUMBERS, self.chains)
        turns = [chain for chain in range(self.chains) for _ in range(size)]
        rng.shuffle(turns)
        done = [0] * self.chains
        facts = []
        for chain in turns:
            at = chain * size + done[chain]
            value = f"VAR {names[at - 1]}" if done[chain] else str(numbers[chain])
            facts.append(f"VAR {names[at]} = {value}.\n")
            done[chain] += 1
        asked = rng.randrange(self.chains)
        chain_names = names[asked * size : (asked + 1) * size]
        if self.ask == "names":
            prompt = f"The variables that hold {numbers[asked]}, in order of assignment, are VAR"
            return Facts(tuple(facts), ask_list(prompt, chain_names, sorted(names)), placed=None)
        prompt = f"Which number does VAR {chain_names[-1]} hold? VAR {chain_names[-1]} holds"
        others = tuple(f" {number}" for chain, number in enumerate(numbers) if chain != asked)
        return Facts(tuple(facts), (Question(prompt, f" {numbers[asked]}", others),), placed=None)


def _name(code: int) -> str:
    base = len(LETTERS)
    return LETTERS[code // base**2] + LETTERS[code // base % base] + LETTERS[code % base]
