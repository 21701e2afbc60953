"""Checks that calls have no side effects but on a cache, and that any use of a cache gives the result of one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.conformance.candidate import SEED, Candidate, say
from zoo.conformance.search import splits

PADDING = 1e3  # size of what stands on padding


def repeated_calls(candidate: Candidate, length: int) -> str | None:
    """Checks that two equal calls give the same, with calls of other inputs between them."""
    module, x = candidate.fresh(), candidate.draw(2, length)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with torch.no_grad():
        first = module(x)
        for other in (x[:1], -x):
            module(other)
        second = module(x)
        found = candidate.difference(second, first)
        if found is None:
            return None
        torch.manual_seed(SEED)
        seeded = module(x)
    changed = [key for key, value in module.state_dict().items() if not torch.equal(value, before[key])]
    why = "a forward pass changes its state"
    if changed:
        why = f"a forward pass changes {', '.join(changed)}"
    elif candidate.difference(seeded, first) is None:
        why = "a forward pass draws random numbers in evaluation mode"
    return f"two equal calls differ by {found[1]:.2g} at output {found[0][1]}: {why}"


def splits_of_a_cache(candidate: Candidate, length: int) -> str | None:
    """Checks that pieces through a cache give the result of one pass, also while another cache is in use."""
    x = candidate.draw(2, length)
    want = candidate.run(x)
    for sizes in [[length], *splits(length)]:
        if found := candidate.difference(candidate.run_pieces(x, sizes), want):
            (_, output), by = found
            return f"in {_pieces(sizes)} through a cache output {output} differs from the whole by {by:.2g}"
    for sizes in splits(length)[-1:]:
        if found := candidate.difference(_in_turn(candidate, x, sizes), want):
            (_, output), by = found
            return f"with two caches in turn, in {_pieces(sizes)}, output {output} differs by {by:.2g}"
    return None


def _pieces(sizes: list[int]) -> str:
    if len(sizes) > 6:
        return (
            f"{len(sizes)} pieces of {min(sizes)} to {max(sizes)} tokens"
            if len(set(sizes)) > 1
            else (f"{len(sizes)} pieces of {sizes[0]}")
        )
    return f"pieces of {say(sizes)}" if len(sizes) > 1 else "one piece"


def _in_turn(candidate: Candidate, x: Tensor, sizes: list[int]) -> Tensor:
    """Outputs of two rows, each with a cache of its own, piece by piece in turn."""
    module, outputs = candidate.fresh(), list[list[Tensor]]([[], []])
    with torch.no_grad():
        caches = [candidate.new_cache(module, 1) for _ in outputs]
        for piece in x.split(sizes, 1):
            for row, held in enumerate(caches):
                outputs[row].append(module(piece[row : row + 1], cache=held))
    return torch.cat([torch.cat(parts, 1) for parts in outputs])


def ragged_rows(candidate: Candidate, length: int) -> str | None:
    """Checks that rows of unequal lengths, padded with outliers, each give what they give alone.

    A second piece through the same cache is checked, too.
    """
    x = candidate.draw(3, 2 * length)
    for first in ([length, 1, length // 2], [1, length, 0], [0, length, length]):
        totals = [n + length for n in first]
        alone = [candidate.run(x[row : row + 1, :n]) if candidate.takes(n) else None for row, n in enumerate(totals)]
        pieces = _run_ragged(candidate, x, first, length)
        for row, want in enumerate(alone):
            if want is None:
                continue
            n = first[row]
            got = torch.cat([pieces[0][row : row + 1, :n], pieces[1][row : row + 1]], 1)
            if found := candidate.difference(got, want):
                (_, output), by = found
                given = f"rows of {say(first)} tokens, then {length} more"
                return f"{given}: output {output} of row {row} differs from that of it alone by {by:.2g}"
    return None


def _run_ragged(candidate: Candidate, x: Tensor, first: list[int], length: int) -> list[Tensor]:
    """Outputs of the padded first piece, and of ``length`` more tokens of every row."""
    module, rows, lengths = candidate.fresh(), range(x.shape[0]), torch.tensor(first, device=x.device)
    padded = PADDING * candidate.draw_like(x[:, :length])
    for row in rows:
        padded[row, : first[row]] = x[row, : first[row]]
    rest = torch.stack([x[row, first[row] : first[row] + length] for row in rows])
    with torch.no_grad():
        held = candidate.new_cache(module, x.shape[0])
        return [module(padded, cache=held, lengths=lengths), module(rest, cache=held)]
