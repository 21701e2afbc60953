"""Search for the smallest case in which a check fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from zoo.conformance.candidate import Candidate, WrongShape
from zoo.conformance.target import one_line

Case = Callable[[Candidate, int], "str | None"]

SMALL = 20  # tokens up to which every place is looked at
BORDERS = (62, 63, 64)  # of the blocks that most kernels have


def find_smallest(candidate: Candidate, case: Case) -> str | None:
    """What fails at the smallest length at which something does; None if nothing does at ``candidate.lengths``.

    Args:
        candidate: the module.
        case: what fails at a length, None where nothing does; what it raises is what fails.
    """
    if not any(found := [(n, said) for n in candidate.lengths if (said := try_case(candidate, case, n))]):
        return None
    smallest = min(found)
    for length in range(1, smallest[0]):
        if candidate.takes(length) and (said := try_case(candidate, case, length)):
            smallest = (length, said)
            break
    return f"T={smallest[0]}: {smallest[1]}"


def try_case(candidate: Candidate, case: Case, length: int) -> str | None:
    """Returns what fails at one length; an exception of the module becomes one line."""
    try:
        return case(candidate, length)
    except WrongShape as error:
        return str(error)
    except Exception as error:
        return f"raises {one_line(error)}"


def places(length: int) -> list[int]:
    """Returns the tokens at which a check looks: all of a short input, else both ends and the borders.

    Each of them has a later token.
    """
    if length <= SMALL:
        return list(range(length - 1))
    chosen = {0, 1, length // 4, length // 2, *BORDERS, length - 3, length - 2}
    return sorted(t for t in chosen if t <= length - 2)


def random_split(seed: int, length: int) -> list[int]:
    """Returns random sizes of pieces that sum to ``length``, single tokens and many."""
    choose, pieces = random.Random(seed), list[int]()
    while sum(pieces) < length:
        most = length - sum(pieces)
        pieces.append(min(most, choose.choice([1, 1, 1, 2, choose.randint(1, most)])))
    return pieces


def splits(length: int) -> list[list[int]]:
    """Returns ways to cut ``length`` tokens: single ones, twos, a long piece and one, halves, and at random."""
    half = length // 2
    twos = [2] * half + [1] * (length % 2)
    ways = [[1] * length, twos, [length - 1, 1], [1, length - 1], [half, length - half]]
    ways += [random_split(seed, length) for seed in range(2)]
    kept: Sequence[list[int]] = [way for way in ways if min(way) > 0]
    return [list(way) for way in dict.fromkeys(map(tuple, kept))]
