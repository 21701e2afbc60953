"""BigBird for decoders: softmax attention over global, recent and random blocks.

    query block i reads the blocks {0..g-1}, {i-w+1..i} and r of {g..i-w} drawn without replacement; all causally,
    each block once, in one softmax. The draw is a hash of (seed, layer, head, i): it is the same in training and
    evaluation and for every length.

Zaheer et al. 2020 (arXiv:2007.14062), an encoder: its global last block and its rows that read
everything have no causal form.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.parts.patterns import BlockPattern, BlockSparseMixer, hashed
from zoo.mixers.registry import register


@register("bigbird")
class BigBirdAttention(BlockSparseMixer):
    """Softmax attention over global, recent and random blocks.

    Args:
        block: tokens of a block: 16, 32, 64 or 128.
        window_blocks: latest blocks that a query reads, its own included.
        random_blocks: random blocks per query block and head.
        global_blocks: first blocks of the document, which all queries read.
        seed: seed of the random blocks.
        kv_heads: number of key and value heads G, a divisor of the heads; None for one per query head.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies; None for no positions.
        rope_fraction: share of each head that is rotated; the remaining part has no position.

    Raises:
        ValueError: on numbers of blocks that are impossible, or heads that do not fit together.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        block: int = 64,
        window_blocks: int = 3,
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
        listed = partial(
            bigbird_blocks, window_blocks=window_blocks, random_blocks=random_blocks, global_blocks=global_blocks,
            seed=seed, layer=layer, heads=heads,
        )  # fmt: skip
        self._pattern = BlockPattern(block, listed)

    @property
    def pattern(self) -> BlockPattern:
        return self._pattern


def check_counts(window_blocks: int, random_blocks: int, global_blocks: int) -> None:
    """Checks the numbers of blocks of a BigBird pattern: a window of at least one block, others not negative.

    Raises:
        ValueError: naming the first number that is out of range.
    """
    if window_blocks < 1:
        raise ValueError(f"window_blocks={window_blocks}: expected at least 1 block, the query's own.")
    if random_blocks < 0 or global_blocks < 0:
        raise ValueError(f"random_blocks={random_blocks} and global_blocks={global_blocks}: expected numbers >= 0.")


def bigbird_blocks(
    blocks: Tensor, *, window_blocks: int, random_blocks: int, global_blocks: int, seed: int, layer: int, heads: int
) -> Tensor:
    """Returns the key blocks of query blocks ``(N,)``: ``(H, N, L)`` with L the sum of the three numbers of blocks.

    Without random blocks one list serves all heads, ``(1, N, L)``. It is a rule for
    :class:`zoo.mixers.parts.patterns.BlockPattern`.
    """
    first, recent = (torch.arange(n, device=blocks.device) for n in (global_blocks, window_blocks))
    fixed = torch.cat([first.expand(len(blocks), -1), blocks[:, None] - recent], -1)[None]
    if random_blocks == 0:
        return fixed
    head = torch.arange(heads, device=blocks.device)[:, None]
    others = (blocks - window_blocks + 1 - global_blocks).clamp(min=0)
    drawn = sample(others, random_blocks, hashed(head, seed, layer, blocks))
    return torch.cat([fixed.expand(heads, -1, -1), torch.where(drawn < 0, drawn, drawn + global_blocks)], -1)


def sample(population: Tensor, count: int, seeds: Tensor) -> Tensor:
    """Samples ``count`` numbers below ``population (N,)`` without replacement, for each of ``seeds (H, N)``.

    Floyd's algorithm (Bentley and Floyd 1987, CACM 30:9): every subset is equally likely, and the time does not depend
    on the population.

    Returns:
        ``(H, N, count)`` int64; where the population is smaller than ``count``, all of it, padded with -1.
    """
    slots = torch.arange(count, device=seeds.device)
    everything = torch.where(slots < population[:, None], slots, -1).expand(*seeds.shape, count)
    drawn = torch.full_like(everything, -1)
    for slot in range(count):
        latest = (population - count + slot).clamp(min=0).expand(seeds.shape)
        number = hashed(seeds, slot) % (latest + 1)
        taken = (drawn == number[..., None]).any(-1)
        drawn = torch.where(slots == slot, torch.where(taken, latest, number)[..., None], drawn)
    return torch.where((population <= count)[:, None], everything, drawn)
