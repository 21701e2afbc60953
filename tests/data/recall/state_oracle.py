"""States told without a multiplication table: numbers are added, things are laid in a row and moved."""

from itertools import accumulate, permutations

SIZES = {"parity": 2, "mod5": 5, "s3": 6, "s5": 120}
FIRST = {"parity": 0, "mod5": 2, "s3": 7, "s5": 13}
THINGS = {"s3": 3, "s5": 5}


def track(group, symbols):
    """State behind each symbol, as numbers of elements."""
    if group not in THINGS:
        return [total % SIZES[group] for total in accumulate(symbols)]
    elements = list(permutations(range(THINGS[group])))
    row, states = list(range(THINGS[group])), []
    for symbol in symbols:
        row = [elements[symbol][thing] for thing in row]
        states.append(elements.index(tuple(row)))
    return states
