"""Stories with a question, spread over a haystack (idea: bAbI, Weston et al. 2015, arXiv:1502.05698; BABILong)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from zoo.data.recall.base import RecallTask
from zoo.data.recall.compose import Facts
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.lists import check_least
from zoo.data.recall.samples import Question, RecallError
from zoo.data.recall.tasks.babi_world import Act, Event, Visit, World, simulate
from zoo.data.recall.words import NAMES, PLACES, draw_distinct
from zoo.registry import RECALL_TASKS

OBJECTS = (
    *("apple", "ball", "book", "bottle", "box", "cake", "candle", "coin", "cup", "hammer", "hat", "key", "lamp"),
    *("lemon", "letter", "map", "orange", "parcel", "pen", "purse", "ring", "rope", "scarf", "spoon"),
)
SPECIES = (
    *(("bear", "bears"), ("cat", "cats"), ("dog", "dogs"), ("fox", "foxes"), ("goat", "goats"), ("hen", "hens")),
    *(("horse", "horses"), ("lion", "lions"), ("mouse", "mice"), ("pig", "pigs"), ("rabbit", "rabbits")),
    *(("snake", "snakes"), ("wolf", "wolves")),
)
VERBS = {Act.MOVE: ("went to", "moved to"), Act.TAKE: ("took", "grabbed"), Act.DROP: ("dropped", "put down")}
WEIGHTS = {Act.MOVE: 0.55, Act.TAKE: 0.3, Act.DROP: 0.15}
NUMBERS = ("none", "one", "two", "three")
RIVALS = 2  # wrong places, at least, that a story offers where a place is asked for
STORIES = 3000  # drawn before giving up; with the options of the variants one of about five will do

Asked = tuple[Question, int]


@RECALL_TASKS.register("babi")
@dataclass(frozen=True)
class Babi(RecallTask):
    """A story of people who move, take and drop, in order, and a question at its end.

    The answer follows from the story alone, and the placed fact is the last one it depends on. The wrong values are the
    other answers that the story offers: the places it names, except for one that the question rules out; yes or no; the
    other numbers from none to three, which the question names since the story does not; the other animals, by their
    plural.

    Attributes:
        kind: kind of the question. ``one_fact``: where a person is. ``two_facts``: where an object is that was carried.
            ``three_facts``: where an object was before a place. ``yes_no``: whether a person is in a place; both
            answers are equally likely. ``counting``: how many objects a person carries; none, one, two and three are
            equally likely. ``deduction``: what somebody is afraid of, by what kind of animal it is.
        events: number of sentences of the story; with ``deduction``, two for each animal.
        people: number of people who act in the story; with ``deduction``, of animals.
    """

    kind: str = "one_fact"
    events: int = 6
    people: int = 3

    name: ClassVar[str] = "babi"
    VARIANTS: ClassVar[dict[str, dict[str, Any]]] = {
        "one_fact": {},
        "two_facts": {"kind": "two_facts", "events": 8, "people": 2},
        "three_facts": {"kind": "three_facts", "events": 9, "people": 2},
        "yes_no": {"kind": "yes_no"},
        "counting": {"kind": "counting", "events": 9, "people": 2},
        "deduction": {"kind": "deduction", "people": 4},
    }

    def __post_init__(self) -> None:
        check_least(self.name, 1, events=self.events)
        check_least(self.name, 2, people=self.people)
        if self.kind not in self.VARIANTS:
            raise RecallError(f"{self.name}: kind={self.kind!r}: expected one of {', '.join(self.VARIANTS)}.")
        most = len(SPECIES) if self.kind == "deduction" else len(NAMES)
        if self.people > most:
            raise RecallError(f"{self.name}: people={self.people}: expected at most {most} for kind={self.kind!r}.")

    def draw(self, rng: random.Random, length: int | None, encoder: Encoder) -> Facts:
        if self.kind == "deduction":
            return _deduction(rng, self.people)
        wish = rng.random()  # decided before the story, so that no answer is likelier for being found sooner
        for _ in range(STORIES):
            world = World(draw_distinct(rng, NAMES, self.people), rng.sample(PLACES, 5), rng.sample(OBJECTS, 4))
            simulate(rng, world, self.events, WEIGHTS)
            asked = ASK[self.kind](rng, world, wish)
            if asked is not None:
                question, support = asked
                return Facts(tuple(_sentence(rng, event) for event in world.events), (question,), placed=support)
        raise RecallError(
            f"{self.name}: no story for kind={self.kind!r} with events={self.events} and people={self.people}: "
            "choose more events, or fewer people."
        )


def _sentence(rng: random.Random, event: Event) -> str:
    return f"{event.person} {rng.choice(VERBS[event.act])} the {event.thing}.\n"


def _question(prompt: str, answer: str, offered: Iterable[str]) -> Question:
    return Question(prompt, f" {answer}", tuple(f" {other}" for other in offered if other != answer))


def _other_places(world: World, wish: float, place: str, *ruled_out: str) -> list[str] | None:
    """The wrong places that a story offers; None if it is not the story that is wanted.

    In a quarter of the stories the right place is the one named last, as if it were one of four by chance.
    """
    named = world.named_places()
    others = [other for other in named if other not in (place, *ruled_out)]
    last = place == named[-1]
    return others if len(others) >= RIVALS and last == (wish % 0.5 < 0.125) else None


def _one_fact(rng: random.Random, world: World, wish: float) -> Asked | None:
    person = rng.choice([person for person in world.people if person in world.visits])
    last = world.visits[person][-1]
    others = _other_places(world, wish, last.place)
    if others is None:
        return None
    return _question(f"Where is {person}? {person} is in the", last.place, others), last.event


def _two_facts(rng: random.Random, world: World, wish: float) -> Asked | None:
    moved = [thing for thing in world.objects if len(world.visits.get(thing, ())) > 1]
    if not moved:
        return None
    thing = rng.choice(moved)
    place = world.visits[thing][-1].place
    others = _other_places(world, wish, place)
    if others is None:
        return None
    return _question(f"Where is the {thing}? The {thing} is in the", place, others), world.touched[thing]


def _three_facts(rng: random.Random, world: World, wish: float) -> Asked | None:
    found: list[tuple[str, Visit, Visit]] = []
    for thing in world.objects:
        visits = world.visits.get(thing, [])
        places = [visit.place for visit in visits]
        found += [(thing, a, b) for a, b in pairwise(visits) if places.count(b.place) == 1]
    if not found:
        return None
    thing, before, after = rng.choice(found)
    others = _other_places(world, wish, before.place, after.place)
    if others is None:
        return None
    prompt = f"Where was the {thing} before the {after.place}? The {thing} was in the"
    return _question(prompt, before.place, others), after.event


def _yes_no(rng: random.Random, world: World, wish: float) -> Asked | None:
    moved = [person for person in world.people if len(world.visits.get(person, ())) > 1]
    if not moved:
        return None
    person = rng.choice(moved)
    last = world.visits[person][-1]
    others = _other_places(world, wish, last.place)
    if others is None:
        return None
    # mostly the wrong place is an earlier one, so that having been there is no sign of being there
    earlier = [visit.place for visit in world.visits[person] if visit.place != last.place]
    place = last.place if wish < 0.5 else rng.choice(earlier if rng.random() < 0.75 else others)
    prompt = f"Is {person} in the {place}, yes or no? Answer:"
    return _question(prompt, "yes" if place == last.place else "no", ("yes", "no")), last.event


def _counting(rng: random.Random, world: World, wish: float) -> Asked | None:
    number = int(wish * len(NUMBERS))
    people = [person for person in world.hands if len(world.carried(person)) == number]
    if not people:
        return None
    person = rng.choice(people)
    prompt = f"How many objects does {person} carry: none, one, two or three? {person} carries"
    return _question(prompt, NUMBERS[number], NUMBERS), world.hands[person]


def _deduction(rng: random.Random, people: int) -> Facts:
    """Each kind of animal is afraid of the next one in a ring, so that every one of them is feared once."""
    ring, names = draw_distinct(rng, SPECIES, people), draw_distinct(rng, NAMES, people)
    rules = [f"{ring[i][1].capitalize()} are afraid of {ring[(i + 1) % people][1]}.\n" for i in range(people)]
    members = [f"{name} is a {singular}.\n" for name, (singular, _) in zip(names, ring)]
    facts = rules + members
    rng.shuffle(facts)
    asked = rng.randrange(people)
    feared = ring[(asked + 1) % people]
    question = _question(
        f"What is {names[asked]} afraid of? {names[asked]} is afraid of",
        feared[1],
        sorted(plural for kind, (_, plural) in enumerate(ring) if kind != asked),
    )
    return Facts(tuple(facts), (question,), placed=max(facts.index(rules[asked]), facts.index(members[asked])))


ASK: dict[str, Callable[[random.Random, World, float], Asked | None]] = {
    "one_fact": _one_fact,
    "two_facts": _two_facts,
    "three_facts": _three_facts,
    "yes_no": _yes_no,
    "counting": _counting,
}
