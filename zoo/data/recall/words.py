"""Plain English words, numbers and ids for the facts of tasks."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Draw = Callable[[random.Random], str]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# At most seven letters each, so that facts stay short even in bytes.
ADJECTIVES = _words(
    """
    amber ancient angry bitter blank blue bold bony brave brief bright brisk broad brown calm careful cheap chilly
    clean clear clever cloudy coarse cold crisp crooked curious damp dark deep dim dizzy dry dusty eager early easy
    elegant empty faint fair famous fancy fast fierce fine flat fluffy foggy fresh funny gentle giant glad golden
    grand green grey gruff handy happy harsh hasty heavy hidden hollow honest huge humble hungry icy idle jolly keen
    kind large late lazy lean light lively lonely long loud lucky mellow merry mild modest muddy narrow neat noisy
    odd old pale patient plain polite proud quick quiet rapid rare red rich rough round royal rusty sandy shallow
    sharp shiny shy silent silver simple sleepy slender slow small smooth soft sour steep stiff strange strong
    sturdy subtle sunny sweet swift tall tame thick thin tidy tiny tough vast warm weary wet white wide wild windy
    wise witty yellow young
    """
)
NOUNS = _words(
    """
    acorn almond anchor ant antler anvil apple apron arrow ash axe badge badger bag ball balloon banana banjo barley
    barn barrel basin basket bat beach bead beam bean bear beaver bee beetle bell belt bench berry bicycle bird
    biscuit blanket blossom boat bolt bone book boot bottle bowl box branch bread brick bridge broom brush bubble
    bucket buckle butter button cabbage cabin cable cactus cake camel camera candle canoe canvas carpet carrot cart
    castle cat cave cedar chain chair chalk cheese cherry chess chimney cliff clock cloud clover coal coat coconut
    coin comb compass copper coral cork corn cotton cow crab cradle crane crayon cricket crow crown crystal cup
    curtain daisy deer desk diamond dice dolphin donkey door dove dragon drawer dress drum duck eagle egg elbow
    engine falcon feather fence fern ferry fiddle fig finch fire fish flag flame flask flea flour flower flute fork
    fossil fox frog fur gate ghost giraffe glass globe glove goat goose grain grape grass gravel guitar hammer
    hammock harp harvest hat hawk hazel heart hedge helmet hen heron hill hinge honey hook horn horse hour iceberg
    ink iron island ivory ivy jacket jar jewel jug kettle kite kitten knife knot ladder lake lamb lamp lantern leaf
    leather lemon letter lily lime lion lizard lobster lock log lotus magnet mango map maple marble mask mat meadow
    melon mirror mitten mole monkey moon moose moss moth mouse nail napkin needle nest net nettle nut oak oar ocean
    olive onion orange orchid ostrich otter oven owl ox oyster paddle palm panda paper parcel parrot peach peacock
    pear pearl pebble pelican pen pencil penguin pepper piano picture pig pigeon pillow pine pipe pirate planet
    plate plough plum pocket pond pony potato pumpkin puppet purse puzzle rabbit raccoon radio raft rain raven
    ribbon rice ring river robin robot rocket roof rope rose ruler saddle sail salmon salt sand sandal saucer saw
    scarf seal seed shark sheep shell ship shirt shoe shovel skirt sled snail snake snow soap sock sofa spade
    sparrow spear spider spoon stamp star stone stove straw sugar swan sword table teapot tent thimble thorn thread
    tiger toad tomato torch tower toy trumpet trunk tulip tunnel turnip turtle vase violin wagon walnut wasp watch
    whale wheat wheel whistle willow window wolf wool zebra
    """
)
NAMES = _words(
    """
    Alice Arthur Bella Bruno Clara Daniel Edith Felix Greta Henry Ida Jonas Karen Leo Martha Nora Oscar Paula
    Quentin Rosa Simon Tessa Victor Wanda
    """
)
PLACES = _words(
    """
    attic balcony bathroom bedroom cellar corridor garage garden hallway kitchen laundry library nursery office
    pantry playground school workshop
    """
)


def draw_distinct(rng: random.Random, pool: Sequence[T], n: int) -> list[T]:
    """Draws ``n`` different members of a pool, in random order.

    Raises:
        ValueError: if the pool has fewer.
    """
    if n > len(pool):
        raise ValueError(f"n={n}: the pool has only {len(pool)} members. Ask for fewer.")
    return rng.sample(pool, n)


def key_phrase(rng: random.Random) -> str:
    """Draws an adjective and a noun, such as "grey-otter"."""
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def draw_number(rng: random.Random) -> str:
    """Draws seven digits, the first of which is not zero."""
    return str(rng.randrange(1_000_000, 10_000_000))


def draw_hex(rng: random.Random) -> str:
    """Draws eight hexadecimal characters, such as "0c41d7be"."""
    return f"{rng.getrandbits(32):08x}"


def draw_uuid(rng: random.Random) -> str:
    """Draws the 36 characters of a random UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def draw_noun(rng: random.Random) -> str:
    """Draws a plain word."""
    return rng.choice(NOUNS)


def draw_new(rng: random.Random, draw: Draw, n: int, taken: tuple[str, ...] = ()) -> list[str]:
    """Draws ``n`` different values, none of them in ``taken``."""
    found: dict[str, None] = {}
    while len(found) < n:
        text = draw(rng)
        if text not in taken:
            found[text] = None
    return list(found)
