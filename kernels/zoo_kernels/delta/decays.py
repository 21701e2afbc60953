"""What decays make of the pairs of a chunk: one number per head and token, or one per channel.

Both kinds give weights ``query`` (what the state before the chunk keeps until a token), ``key`` (what a token's write
keeps until the end of the chunk) and ``state`` (what is kept over the chunk), the products of readers and writers,
``A[i, j] = sum_d x_id y_jd exp(g_{j+1} + .. + g_i)_d`` for ``j <= i``, and the derivatives of these.

Letters: N chunks of all heads; c tokens; s readers and z writers a token, side by side as ``(N, s c, D)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from zoo_kernels.chunks import FORGOTTEN, Buffer, Segments, Weights, decay_gradient, precise, within_documents
from zoo_kernels.chunks import decay_weights as weights_of


class Pairs(NamedTuple):
    """The two sides of the pairs of a segment, and the two parts of the gradients of each.

    Attributes:
        x: readers ``(N, s c, D)``, queries first.
        y: writers ``(N, z c, D)``.
        a: products of readers and writers ``(N, s c, z c)``.
        grad: gradients of the products, which are overwritten.
        to_x: gradients of readers that came through the states; those of the products are added.
        to_y: gradients of writers, likewise.
    """

    x: Buffer
    y: Buffer
    a: Buffer
    grad: Buffer
    to_x: Buffer
    to_y: Buffer


class Decays(ABC):
    """Decays of the segments of one call; :meth:`enter` chooses the segment that the others are about."""

    query: Tensor
    key: Tensor
    state: Tensor

    def __init__(self, segments: Segments) -> None:
        self.segments = segments

    @abstractmethod
    def enter(self, i: int, view: Tensor | None) -> None:
        """Weights of segment ``i``, whose log decays are ``view`` ``(n, B, H, r, 1 or D)``; None: as of heads."""

    @abstractmethod
    def products(self, x: Buffer, y: Buffer, a: Buffer) -> None:
        """Fills ``a``; readers other than queries do not meet the writers of their own token."""

    @abstractmethod
    def gradients(self, pairs: Pairs, kept: Tensor | None) -> Tensor | None:
        """Adds what came through the products to ``to_x`` and ``to_y``; gives the gradient of the log decays.

        Args:
            pairs: the pairs of the segment.
            kept: ``(n, B, H, D)`` the state before each chunk times the gradient of that after it, summed over E; None
                if the log decays have no gradient.
        """


class HeadDecays(Decays):
    """One decay per head, or per head and token: a product of matrices, times weights of pairs."""

    def __init__(self, segments: Segments, log_decay: Tensor | None, documents: Tensor | None) -> None:
        super().__init__(segments)
        none = torch.zeros(1, device=segments.device)
        self.log_decay = precise(none if log_decay is None else log_decay).clamp(FORGOTTEN, 0)
        self.of_tokens = segments.views(self.log_decay[..., None]) if self.log_decay.dim() == 3 else None
        self.documents = None if documents is None else segments.document_views(documents)
        self.constant: dict[int, Weights] = {}

    def enter(self, i: int, view: Tensor | None) -> None:
        """Weights, in fp64 until they are exponentials."""
        made = self._weights(i)
        if self.documents is not None:
            made = within_documents(made, *(ids[i] for ids in self.documents))
        self.pair, self.query, self.key, self.state = made
        self.strict = self.pair.tril(-1)

    def _weights(self, i: int) -> Weights:
        chunk = self.segments.chunks[i]
        if self.of_tokens is not None:
            return weights_of(self.of_tokens[i], self.segments.dtype)
        if chunk not in self.constant:
            every_token = self.log_decay[:, None, None].expand(1, 1, -1, chunk, 1)
            self.constant[chunk] = weights_of(every_token, self.segments.dtype)
        return self.constant[chunk]

    def products(self, x: Buffer, y: Buffer, a: Buffer) -> None:
        """One product, weighted."""
        a.multiply(x.flat, y.turned)
        self._weigh(a)

    def gradients(self, pairs: Pairs, kept: Tensor | None) -> Tensor | None:
        """The decays' from products of whole rows: what a pair gives is one number."""
        found = None if kept is None else self._of_decays(pairs, kept)
        self._weigh(pairs.grad)
        pairs.to_x.multiply(pairs.grad.flat, pairs.y.flat, add=True)
        pairs.to_y.multiply(pairs.grad.turned, pairs.x.flat, add=True)
        return found

    def _of_decays(self, p: Pairs, kept: Tensor) -> Tensor:
        c = self.pair.shape[-1]
        blocks = (p.a.wide * p.grad.wide).unflatten(-1, (-1, c)).unflatten(-3, (-1, c)).sum((-4, -2))
        readers, writers = ((x.wide * to.wide).sum(-1) for x, to in ((p.x, p.to_x), (p.y, p.to_y)))
        queries, keys = (x.unflatten(-1, (-1, c)).sum(-2) for x in (readers, writers))
        return decay_gradient(blocks, queries, keys, precise(kept).sum(-1) * self.state[..., 0, 0])[..., None]

    def _weigh(self, a: Buffer) -> None:
        c = self.pair.shape[-1]
        for weight, rows in zip((self.pair, self.strict), a.wide.split(c, -2)):
            for block in rows.split(c, -1):
                block.mul_(weight)


class ChannelDecays(Decays):
    """A decay for each channel, by halves: every factor is at most 1, and no token's depends on a later one.

    Of the pairs of a chunk, a half meets the other half: what a reader in the right half keeps from its beginning on,
    times what a writer in the left half keeps to its end. The rest are the pairs inside each half, taken likewise, down
    to neighbors. The weights are products over the tokens of a half, made from those over its halves: as many
    roundings as levels, whatever the decays, where exponentials of sums of the chunk lose what the sums lose.
    """

    def __init__(self, segments: Segments, documents: Tensor | None) -> None:
        super().__init__(segments)
        self.starts = None
        if documents is not None:
            first = torch.zeros_like(documents, dtype=torch.bool)
            first[:, 1:] = documents[:, 1:] != documents[:, :-1]
            self.starts = segments.views(first[:, :, None, None])

    def enter(self, i: int, view: Tensor | None) -> None:
        """Weights of all levels: of queries in right halves, of keys in left ones; beyond the sequence they are 1."""
        assert view is not None
        n, rest, width = view.shape[0], view.shape[3], view.shape[4]
        self.c, self.log_decay = padded(rest), view
        self.alive = None if self.starts is None else ~self.starts[i]
        query = self.segments.buffer("query", n, self.c, width)
        query.wide[..., rest:, :] = 1
        now = query.wide[..., :rest, :]
        torch.exp(torch.clamp(view, max=0, out=now) if view.dtype == now.dtype else view.clamp(max=0), out=now)
        if self.alive is not None:
            now.mul_(self.alive)
        key = self.segments.buffer("key", n, self.c, width)
        key.wide.fill_(1)
        self.levels: list[tuple[int, Tensor]] = []
        half = 1
        while half < self.c:
            self.levels.append((half, self._level(half, query.flat, key.flat)))
            half *= 2
        self.query, self.key, self.state = query.wide, key.wide, query.wide[..., -1:, :].mT

    def _level(self, half: int, query: Tensor, key: Tensor) -> Tensor:
        """Weights ``(N, pairs, 2, half, D)``, keys' first; then ``query`` and ``key`` are over both halves."""
        halves = -1, 2, half, query.shape[-1]
        query, key = query.unflatten(1, halves[:3]), key.unflatten(1, halves[:3])
        weights = self.segments.buffer(f"weights {half}", self._chunks(query), self.c, halves[-1]).flat
        weights = weights.unflatten(1, halves[:3])
        weights[:, :, 0] = key[:, :, 0]
        weights[:, :, 1] = query[:, :, 1]
        key[:, :, 0].mul_(query[:, :, 1, -1:])
        query[:, :, 1].mul_(query[:, :, 0, -1:])
        return weights

    def _chunks(self, flat: Tensor) -> int:
        return flat.shape[0] // (self.segments.rows[0] * self.segments.rows[1])

    def products(self, x: Buffer, y: Buffer, a: Buffer) -> None:
        """Level by level, then the queries' own tokens; what lies above the diagonal is 0."""
        a.flat.zero_()
        self.sides: list[tuple[Tensor, Tensor]] = []
        for half, weights in self.levels:
            right = self._side("right", half, x.flat, 1, weights)
            left = self._side("left", half, y.flat, 0, weights)
            self.sides.append((right, left))
            block = (right[:, :, None] * left[:, None]).sum(-1) if half == 1 else torch.bmm(right, left.mT)
            into = self._block(a.flat, half)
            into.copy_(self._spread(block, half, into.shape))
        own = self._queries(x.flat)[:, None] * y.flat.unflatten(1, (-1, self.c))
        self._diagonals(a.flat).copy_(own.sum(-1))

    def _queries(self, x: Tensor) -> Tensor:
        return x[:, : self.c]

    def _diagonals(self, a: Tensor) -> Tensor:
        """``(N, z, c)`` each query's own token's."""
        return a[:, : self.c].unflatten(2, (-1, self.c)).diagonal(dim1=1, dim2=3)

    def _side(self, name: str, half: int, array: Tensor, which: int, weights: Tensor) -> Tensor:
        """The halves of one side, weighted: ``(N pairs, s half, D)``."""
        halves = array.unflatten(1, (-1, self.c // (2 * half), 2, half))[:, :, :, which].transpose(1, 2)
        shape = halves.shape
        kept = self.segments.buffer(f"{name} {half}", self._chunks(array), shape[1] * shape[2] * half, shape[-1]).flat
        torch.mul(halves, weights[:, :, which, None], out=kept.view(shape))
        return kept.view(-1, shape[2] * half, shape[-1])

    def _block(self, a: Tensor, half: int) -> Tensor:
        """The view of ``(N, s c, z c)`` in which right halves meet left ones: ``(N, s, half, z, half, pairs)``."""
        pairs = self.c // (2 * half)
        every = a.unflatten(2, (-1, pairs, 2, half)).unflatten(1, (-1, pairs, 2, half))
        return every[:, :, :, 1, :, :, :, 0].diagonal(dim1=2, dim2=5)

    def _spread(self, block: Tensor, half: int, shape: torch.Size) -> Tensor:
        n, readers, _, writers, _, pairs = shape
        return block.view(n, pairs, readers, half, writers, half).permute(0, 2, 3, 4, 5, 1)

    def gradients(self, pairs: Pairs, kept: Tensor | None) -> Tensor | None:
        """By the same levels; the decays' by sums of what readers and writers pass on."""
        through = None if kept is None else (pairs.y.flat * pairs.to_y.flat).unflatten(1, (-1, self.c)).sum(1)
        added = self.segments.buffer("added", self._chunks(pairs.y.flat), pairs.y.flat.shape[1], pairs.y.flat.shape[2])
        added.flat.zero_()
        for (half, weights), (right, left) in zip(self.levels, self.sides):
            self._level_gradients(half, weights, right, left, pairs, added.flat)
        found = None
        if kept is not None and through is not None:
            found = self._of_decays(pairs, added.flat, through, kept)
        own = self._diagonals(pairs.grad.flat)[..., None]
        writers = added.flat.unflatten(1, (-1, self.c))
        writers.addcmul_(own, self._queries(pairs.x.flat)[:, None])
        self._queries(pairs.to_x.flat).add_((own * pairs.y.flat.unflatten(1, (-1, self.c))).sum(1))
        pairs.to_y.flat.add_(added.flat)
        return found

    def _level_gradients(
        self, half: int, weights: Tensor, right: Tensor, left: Tensor, pairs: Pairs, to_y: Tensor
    ) -> None:
        view = self._block(pairs.grad.flat, half)
        block = view.permute(0, 5, 1, 2, 3, 4).reshape(-1, right.shape[1], left.shape[1])
        if half == 1:
            of_right = (block[..., None] * left[:, None]).sum(2)
            of_left = (block[..., None] * right[:, :, None]).sum(1)
        else:
            of_right, of_left = torch.bmm(block, left), torch.bmm(block.mT, right)
        for to, found, which in (pairs.to_x.flat, of_right, 1), (to_y, of_left, 0):
            to = to.unflatten(1, (-1, self.c // (2 * half), 2, half))[:, :, :, which].transpose(1, 2)
            to.addcmul_(found.view(to.shape), weights[:, :, which, None])

    def _of_decays(self, p: Pairs, to_y: Tensor, through: Tensor, kept: Tensor) -> Tensor:
        """``dg_t``: readers from t on, less the writers from t on that they read, and writers before t that pass on."""
        change = (p.x.flat * p.to_x.flat).unflatten(1, (-1, self.c)).sum(1)
        change -= (p.y.flat * to_y).unflatten(1, (-1, self.c)).sum(1)
        ones = change.new_ones(self.c, self.c)
        found = torch.matmul(ones.triu(), change).add_(torch.matmul(ones.tril(-1), through))
        found = found.view(*kept.shape[:3], self.c, -1).add_((kept * self.state[..., 0])[..., None, :])
        found = found[..., : self.log_decay.shape[3], :]
        found.masked_fill_(self.log_decay > 0, 0)
        return found if self.alive is None else found.mul_(self.alive)


def padded(tokens: int) -> int:
    """Tokens of a chunk by halves: the next power of 2."""
    return 1 << (tokens - 1).bit_length()
