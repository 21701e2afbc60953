"""FLOPs of delta attention in chunks: two per multiplication and addition of its matrix products and its solves.

Arguments hold shapes in place of tensors.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from zoo_kernels.delta.chunked import cut_of
from zoo_kernels.delta.decays import padded


class _Sizes(NamedTuple):
    """Readers and writers of a token, widths of keys and values, whether decays are per channel, and the chunks."""

    readers: int
    writers: int
    width: int
    value: int
    by_channel: bool
    chunks: list[int]

    @classmethod
    def of(cls, x: Any) -> _Sizes:
        length, width, value = x.v[1], x.q[-1], x.v[-1]
        by_channel = x.log_decay is not None and len(x.log_decay) == 4
        cut = cut_of(x.q, x.v)
        chunks = [c for start, stop, c in cut.spans(length) for _ in range((stop - start) // c)]
        readers = 1 if x.beta is None and x.read is None else 2
        sizes = readers, 1 if x.read is None else 2, width, value
        return cls(*sizes, by_channel, [padded(c) if by_channel else c for c in chunks])

    def pairs(self, c: int) -> int:
        """Multiplications of readers and writers of a chunk; by halves those below the diagonal."""
        return self.readers * self.writers * self.width * (c * (c - 1) // 2 if self.by_channel else c * c)

    def solved(self, c: int) -> int:
        """Of the products, the system and the states of a chunk."""
        system = c**3 // 3 + (self.writers if self.readers == 2 else 0) * c * c * self.value if self.readers == 2 else 0
        return self.pairs(c) + system + (self.readers - 1 + self.writers) * c * self.width * self.value


def forward_flops(x: Any) -> int:
    """FLOPs of the forward pass."""
    s = _Sizes.of(x)
    found = sum(s.solved(c) + c * s.width * s.value + s.writers * c * c * s.value for c in s.chunks)
    return 2 * math.prod(x.v[0:1] + x.v[2:3]) * found


def backward_flops(x: Any, up: Any) -> int:
    """FLOPs of the backward pass, which solves again."""
    s, found = _Sizes.of(x), 0
    for c in s.chunks:
        states = 2 * (s.readers + s.writers) * c * s.width * s.value
        squares = s.writers + s.readers * s.writers + (2 if s.readers == 2 else 0)
        found += s.solved(c) + 2 * s.pairs(c) + states + squares * c * c * s.value
    return 2 * math.prod(x.v[0:1] + x.v[2:3]) * found
