"""Checks that no output depends on later tokens, on the length, on other rows or on other documents."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.conformance.candidate import Candidate, say
from zoo.conformance.search import places, splits

SIZES = (1.0, 1e4, -1e4)  # of the change of a token: of the size of the inputs, and outliers


def future_by_outlier(candidate: Candidate, length: int) -> str | None:
    """Checks that changes of later tokens, small ones and outliers, leave earlier outputs unchanged."""
    x = candidate.draw(1, length)
    want = candidate.run(x)
    for place in places(length):
        for size in SIZES:
            if found := _change(candidate, x, want, range(place + 1, length), size):
                return _single_token(candidate, x, want, place, size) or found
    return None


def _change(candidate: Candidate, x: Tensor, want: Tensor, tokens: range, size: float) -> str | None:
    """What a change of ``tokens`` changes before them."""
    changed = x.clone()
    changed[:, tokens.start : tokens.stop] += size * candidate.draw_like(x)[:, tokens.start : tokens.stop]
    found = candidate.difference(candidate.run(changed)[:, : tokens.start], want[:, : tokens.start])
    if found is None:
        return None
    (_, output), by = found
    which = f"token {tokens.start}" if len(tokens) == 1 else f"tokens {tokens.start} to {tokens.stop - 1}"
    return f"changing {which} changes output {output} by {by:.2g}"


def _single_token(candidate: Candidate, x: Tensor, want: Tensor, place: int, size: float) -> str | None:
    """The first token after ``place`` that alone changes an output before it."""
    tried = (_change(candidate, x, want, range(t, t + 1), size) for t in range(place + 1, x.shape[1]))
    return next((found for found in tried if found), None)


def future_by_gradient(candidate: Candidate, length: int) -> str | None:
    """Checks that the gradient of an output with respect to every later token is zero."""
    x = candidate.draw(1, length).requires_grad_()
    y = candidate.run(x, grad=True)
    if not y.requires_grad:
        return "the output has no gradient with respect to the input"
    weight = candidate.draw_like(y)

    def gradients(outputs: slice) -> Tensor:
        loss = (y[:, outputs] * weight[:, outputs]).sum()
        (grad,) = torch.autograd.grad(loss, x, retain_graph=True, allow_unused=True)
        return torch.zeros(length) if grad is None else grad[0].abs().amax(-1)

    allowed = candidate.relative * gradients(slice(None)).max()
    for place in places(length):
        if (gradients(slice(place + 1))[place + 1 :] <= allowed).all():
            continue
        for output in range(place + 1):
            size = gradients(slice(output, output + 1))
            if len(later := (~(size[output + 1 :] <= allowed)).nonzero()):
                token = output + 1 + int(later[0])
                return f"output {output} has a gradient of {float(size[token]):.2g} with respect to token {token}"
    return None


def length_of_sequence(candidate: Candidate, length: int) -> str | None:
    """Checks that the first tokens alone give what they give at the start of a longer input."""
    x = candidate.draw(1, length)
    want = candidate.run(x)
    for shorter in sorted({place + 1 for place in places(length)}):
        if candidate.takes(shorter) and (
            found := candidate.difference(candidate.run(x[:, :shorter]), want[:, :shorter])
        ):
            (_, output), by = found
            which = "token alone gives" if shorter == 1 else f"{shorter} alone give"
            return f"the first {which} another output {output}, by {by:.2g}"
    return None


def other_rows(candidate: Candidate, length: int) -> str | None:
    """Checks that a row alone gives what it gives in a batch of three."""
    x = candidate.draw(3, length)
    want = candidate.run(x)
    for row in range(3):
        if found := candidate.difference(candidate.run(x[row : row + 1]), want[row : row + 1]):
            (_, output), by = found
            return f"row {row} of 3 alone gives another output {output}, by {by:.2g}"
    return None


def packed_documents(candidate: Candidate, length: int) -> str | None:
    """Checks that each of several documents in a row gives what it gives alone, from its first position on."""
    x = candidate.draw(1, length)
    for sizes in [[length], *(way for way in splits(length) if len(way) <= length // 2 or length <= 3)]:
        if not all(map(candidate.takes, sizes)):
            continue
        packed = candidate.run(x, documents=document_ids(sizes).to(x.device))
        start = 0
        for number, size in enumerate(sizes):
            part = slice(start, start + size)
            if found := candidate.difference(packed[:, part], candidate.run(x[:, part])):
                (_, output), by = found
                many = f"documents of {say(sizes)} tokens" if len(sizes) > 1 else "one document"
                return f"{many}: output {output} of document {number} differs from that of it alone by {by:.2g}"
            start += size
    return None


def document_ids(sizes: list[int]) -> Tensor:
    """Returns ids ``(1, T)`` of documents of these sizes, distinct and in random order."""
    return torch.cat([torch.full((size,), i ^ 5) for i, size in enumerate(sizes)])[None]
