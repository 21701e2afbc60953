"""Tile sizes that fit into the on-chip memory, and their memory traffic.

Where a device names its registers, accumulators in fp32 live there and may take half of them (the other half is for
addresses, fragments and the softmax); elsewhere they share the on-chip memory with the tiles. D is the head width, E
that of the values, b the bytes of a number; what is streamed is double-buffered.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from zoo.costs.hardware import Hardware

POWERS = tuple(2**n for n in range(4, 10))  # 16 is what matrix units take at least
ACCUMULATOR = 4
SHARE = 0.5


@dataclass(frozen=True)
class ProposedTile:
    """A proposal.

    Attributes:
        rows: queries of softmax attention; chunk of linear attention.
        columns: keys of softmax attention; value columns of linear attention.
        staged: bytes of the tiles in on-chip memory.
        accumulated: bytes of the accumulators in fp32.
        traffic: bytes to and from the main memory per sequence and head.
        flops: FLOPs per sequence and head.
    """

    rows: int
    columns: int
    staged: int
    accumulated: int
    traffic: float
    flops: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte of the main memory."""
        return self.flops / self.traffic


SOFTMAX_FORMULA = "Q rows D b + 2 buffers x columns (D + E) b; accumulators (rows columns + rows E) 4"
LINEAR_FORMULA = "2 buffers x (Q + K) rows D b + V rows columns b; accumulators (rows^2 + rows columns + D columns) 4"


def softmax_tile(hardware: Hardware, key_width: int, value_width: int, size: int, context: int) -> ProposedTile | None:
    """Tiles of a causal flash attention (Dao 2023, arXiv:2307.08691): most scores at a time, then most queries.

    Each tile of queries reads the keys and values up to its end once more. No reuse in a second-level cache is counted,
    nor between query heads that share a key head.

    Args:
        hardware: the device.
        key_width: width D of queries and keys.
        value_width: width E of values.
        size: bytes of a number.
        context: tokens of the sequence.

    Returns:
        None if not even the smallest tile fits.
    """
    fits, both = [], key_width + value_width
    for rows, columns in product(_up_to(context), repeat=2):
        staged = rows * key_width * size + 2 * columns * both * size
        accumulated = ACCUMULATOR * (rows * columns + rows * value_width)
        if _fits(hardware, staged, accumulated):
            tiles = -(-context // rows)
            keys = sum(min((i + 1) * rows, context) for i in range(tiles))
            traffic = both * size * (context + keys)
            flops = 2 * both * context * (context + 1) / 2
            fits.append(ProposedTile(rows, columns, staged, accumulated, traffic, flops))
    return max(fits, key=lambda tile: (tile.rows * tile.columns, tile.rows), default=None)


def linear_tile(hardware: Hardware, key_width: int, value_width: int, size: int, context: int) -> ProposedTile | None:
    """Chunks of linear attention, whose states go through memory between chunks: most outputs at a time.

    Each tile of value columns reads queries and keys again, and keys and values are read twice, for the states and for
    the outputs. A chunk longer than 4DE / (D + E) would do more work inside than the state saves.

    Args:
        hardware: the device.
        key_width: width D of queries and keys.
        value_width: width E of values.
        size: bytes of a number.
        context: tokens of the sequence.

    Returns:
        None if not even the smallest tile fits.
    """
    fits = []
    longest = max(4 * key_width * value_width // (key_width + value_width), POWERS[0])
    for rows, columns in product(_up_to(min(context, longest)), _up_to(value_width)):
        staged = 2 * (2 * rows * key_width + rows * columns) * size
        accumulated = ACCUMULATOR * (rows * rows + rows * columns + key_width * columns)
        if _fits(hardware, staged, accumulated):
            passes, chunks = -(-value_width // columns), -(-context // rows)
            per_token = 3 * key_width * passes + 3 * value_width
            traffic = context * per_token * size + 2 * chunks * key_width * value_width * ACCUMULATOR
            inside = (min(rows, context) + 1) * (key_width * passes + value_width)
            flops = context * (inside + 4 * key_width * value_width)
            fits.append(ProposedTile(rows, columns, staged, accumulated, traffic, flops))
    return max(fits, key=lambda tile: (tile.rows * tile.columns, tile.columns), default=None)


def _up_to(limit: int) -> list[int]:
    """Powers of two up to ``limit``, at least the smallest."""
    return [power for power in POWERS if power <= limit] or [POWERS[0]]


def _fits(hardware: Hardware, staged: int, accumulated: int) -> bool:
    if hardware.registers is None:
        return staged + accumulated <= hardware.on_chip
    return staged <= hardware.on_chip and accumulated <= SHARE * hardware.registers
