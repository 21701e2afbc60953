"""Simulation of people who walk between places and carry objects, independent of text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum


class Act(Enum):
    """Kinds of actions of a person."""

    MOVE = "move"
    TAKE = "take"
    DROP = "drop"


@dataclass(frozen=True)
class Event:
    """An action of a person: a move to a place, or taking or dropping an object."""

    person: str
    act: Act
    thing: str


@dataclass(frozen=True)
class Visit:
    """A place where a person or an object has been, and the number of the event that brought it there."""

    place: str
    event: int


@dataclass
class World:
    """State of knowledge after some events.

    Nothing is known of a person before the first move, nor of an object before it is taken for the first time; so all
    that is known follows from the events.

    Attributes:
        people: names of people.
        places: names of places.
        objects: names of objects.
        events: events so far.
        visits: places of each person and of each object, in order; neighbors differ in place.
        holder: person who carries an object, by object.
        hands: number of the last take or drop of each person.
        touched: number of the last event that took, carried or dropped each object.
    """

    people: Sequence[str]
    places: Sequence[str]
    objects: Sequence[str]
    events: list[Event] = field(default_factory=list)
    visits: dict[str, list[Visit]] = field(default_factory=dict)
    holder: dict[str, str] = field(default_factory=dict)
    hands: dict[str, int] = field(default_factory=dict)
    touched: dict[str, int] = field(default_factory=dict)

    def place(self, who: str) -> str | None:
        """Returns where a person or an object is; None if unknown."""
        return self.visits[who][-1].place if who in self.visits else None

    def carried(self, person: str) -> list[str]:
        """Returns the objects that a person carries."""
        return [thing for thing, holder in self.holder.items() if holder == person]

    def possible(self, person: str) -> dict[Act, list[str]]:
        """Returns the possible actions of a person, each with the things it can be applied to."""
        here = self.place(person)
        moves = [place for place in self.places if place != here]
        if here is None:
            return {Act.MOVE: moves}
        near = [thing for thing in self.objects if thing not in self.holder and self.place(thing) in (None, here)]
        acts = {Act.MOVE: moves, Act.TAKE: near, Act.DROP: self.carried(person)}
        return {act: things for act, things in acts.items() if things}

    def apply(self, event: Event) -> None:
        """Changes the world by a possible event."""
        number, person, thing = len(self.events), event.person, event.thing
        self.events.append(event)
        if event.act is Act.MOVE:
            self.visits.setdefault(person, []).append(Visit(thing, number))
            for carried in self.carried(person):
                self.visits[carried].append(Visit(thing, number))
                self.touched[carried] = number
            return
        self.hands[person] = self.touched[thing] = number
        if event.act is Act.DROP:
            del self.holder[thing]
            return
        self.holder[thing] = person
        if thing not in self.visits:
            self.visits[thing] = [Visit(self.visits[person][-1].place, number)]

    def named_places(self) -> list[str]:
        """Returns the places of the events, each once, in the order in which they were named last."""
        named = [event.thing for event in reversed(self.events) if event.act is Act.MOVE]
        return list(dict.fromkeys(named))[::-1]


def simulate(rng: random.Random, world: World, events: int, weights: dict[Act, float]) -> World:
    """Extends the world by further events: each of a random person, with an action by weight and a random thing.

    Args:
        rng: random generator.
        world: the world so far, which is changed.
        events: number of events.
        weights: weights of the actions, relative to each other among those that are possible. That of a move is
            positive.
    """
    for _ in range(events):
        person = rng.choice(world.people)
        possible = world.possible(person)
        (act,) = rng.choices(list(possible), [weights[act] for act in possible])
        world.apply(Event(person, act, rng.choice(possible[act])))
    return world
