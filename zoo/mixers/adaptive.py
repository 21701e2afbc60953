"""Softmax attention that gets sparser with the position of the query: full, then a window, then BigBird.

    a query at position t of its document, in block i, reads
        all blocks up to i                       for t < full_below,
        blocks {i-w+1..i}                        for t < window_below,
        blocks {0..g-1}, {i-w+1..i}, r random    from there on (see bigbird.py).

The rule depends on the query's own position: a rule of the length of the sequence would change what earlier tokens have
read when the text grows. Window and BigBird: Zaheer et al. 2020 (arXiv:2007.14062).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.mixers.bigbird import bigbird_blocks, check_counts
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.parts.patterns import BlockPattern, BlockSparseMixer
from zoo.mixers.registry import register


@register("adaptive")
class AdaptiveAttention(BlockSparseMixer):
    """Softmax attention that is full for early queries, then windowed, then BigBird's.

    Args:
        full_below: queries at positions below this read all keys; in tokens, a multiple of ``block``.
        window_below: queries at positions from ``full_below`` up to this read a window; in tokens, a multiple of
            ``block``.
        block: tokens of a block: 16, 32, 64 or 128.
        window_blocks: latest blocks that a query reads, its own included.
        random_blocks: random blocks per query block and head, from ``window_below`` on.
        global_blocks: first blocks of the document, read from ``window_below`` on.
        seed: seed of the random blocks.
        kv_heads: number of key and value heads G, a divisor of the heads; None for one per query head.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies; None for no positions.
        rope_fraction: share of each head that is rotated; the remaining part has no position.

    Raises:
        ValueError: on positions or numbers of blocks that are impossible, or heads that do not fit together.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        full_below: int = 512,
        window_below: int = 4096,
        block: int = 64,
        window_blocks: int = 8,
        random_blocks: int = 3,
        global_blocks: int = 1,
        seed: int = 0,
        kv_heads: KvHeads = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        gate: Gate = "none",
        rope_theta: RopeTheta = 10000.0,
        rope_fraction: RopeFraction = 1.0,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim, qk_norm=qk_norm,
            rope_theta=rope_theta,
            rope_fraction=rope_fraction, gate=gate,
        )  # fmt: skip
        check_counts(window_blocks, random_blocks, global_blocks)
        full, windowed = full_below // max(block, 1), window_below // max(block, 1)
        listed = partial(
            adaptive_blocks, full=full, windowed=windowed, window_blocks=window_blocks, random_blocks=random_blocks,
            global_blocks=global_blocks, seed=seed, layer=layer, heads=heads,
        )  # fmt: skip
        others = random_blocks + global_blocks
        longest = partial(adaptive_longest, full=full, windowed=windowed, window_blocks=window_blocks, others=others)
        self._pattern = BlockPattern(block, listed, longest)
        if full_below < 0 or window_below < full_below or full_below % block or window_below % block:
            raise ValueError(
                f"full_below={full_below} and window_below={window_below}: expected multiples of block={block}, "
                "the first not above the second."
            )

    @property
    def pattern(self) -> BlockPattern:
        return self._pattern


def adaptive_blocks(blocks: Tensor, *, full: int, windowed: int, window_blocks: int, **of_bigbird: int) -> Tensor:
    """Returns the key blocks of query blocks: all below ``full``, a window below ``windowed``, then BigBird's.

    It is a rule for :class:`zoo.mixers.parts.patterns.BlockPattern`.

    Args:
        blocks: query blocks ``(N,)``.
        full: query blocks below this read all.
        windowed: query blocks below this read a window.
        window_blocks: latest blocks that are read.
        of_bigbird: arguments of :func:`zoo.mixers.bigbird.bigbird_blocks`.

    Returns:
        Key blocks ``(H or 1, N, L)``.
    """
    first, recent = (torch.arange(n, device=blocks.device) for n in (full, window_blocks))
    sparse = bigbird_blocks(blocks, window_blocks=window_blocks, **of_bigbird)
    rules = first.expand(1, len(blocks), -1), (blocks[:, None] - recent)[None], sparse
    longest = max(rule.shape[-1] for rule in rules)
    everything, latest, sparse = (F.pad(rule, (0, longest - rule.shape[-1]), value=-1) for rule in rules)
    place = blocks[:, None]
    return torch.where(place < full, everything, torch.where(place < windowed, latest, sparse))


def adaptive_longest(block: int, *, full: int, windowed: int, window_blocks: int, others: int) -> int:
    """Returns the largest number of key blocks of a query block; ``others`` counts BigBird's beside its window."""
    if block < full:
        return block + 1
    return min(window_blocks if block < windowed else window_blocks + others, block + 1)
