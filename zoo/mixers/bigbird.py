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

from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, Rope, RopeFraction, ValueDim
from zoo.mixers.parts.patterns import BlockPattern, BlockSparseMixer, hashed
from zoo.mixers.registry import register


@register("bigbird")
class BigBirdAttention(BlockSparseMixer):
    """Softmax attention over global, recent and random blocks.

    Args:
        block: tokens of a block: 16, 32, 64 or 128.
        window: latest blocks that are read, the query's own included.
        random: blocks per query block and head that are drawn from all others.
        globals: first blocks of the document, which all read.
        seed: of the draw.
        kv_heads, head_dim, value_dim, qk_norm, gate, rope, rope_fraction: see :mod:`zoo.mixers.parts.options`.

    Raises:
        ValueError: on numbers of blocks that cannot be, or heads that do not fit together.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        block: int = 64,
        window: int = 3,
        random: int = 3,
        globals: int = 1,
        seed: int = 0,
        kv_heads: KvHeads = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        gate: Gate = "none",
        rope: Rope = 10000.0,
        rope_fraction: RopeFraction = 1.0,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim, qk_norm=qk_norm,
            rope=rope, rope_fraction=rope_fraction, gate=gate,
        )  # fmt: skip
        check_counts(window, random, globals)
        listed = partial(
            bigbird_blocks, window=window, random=random, globals=globals, seed=seed, layer=layer, heads=heads
        )
        self._pattern = BlockPattern(block, listed)

    @property
    def pattern(self) -> BlockPattern:
        """What is read."""
        return self._pattern


def check_counts(window: int, random: int, globals: int) -> None:
    """Raises ValueError unless there are so many blocks: a window of at least the query's own."""
    if window < 1:
        raise ValueError(f"window={window}: expected at least 1 block, the query's own.")
    if random < 0 or globals < 0:
        raise ValueError(f"random={random} and globals={globals}: expected numbers of blocks >= 0.")


def bigbird_blocks(
    blocks: Tensor, *, window: int, random: int, globals: int, seed: int, layer: int, heads: int
) -> Tensor:
    """Key blocks of query blocks ``(N,)``: ``(H, N, globals + window + random)``, of one list for all where random = 0.

    See :class:`zoo.mixers.parts.patterns.BlockPattern`, of which this is a rule.
    """
    first, recent = (torch.arange(n, device=blocks.device) for n in (globals, window))
    fixed = torch.cat([first.expand(len(blocks), -1), blocks[:, None] - recent], -1)[None]
    if random == 0:
        return fixed
    head = torch.arange(heads, device=blocks.device)[:, None]
    others = (blocks - window + 1 - globals).clamp(min=0)
    drawn = sample(others, random, hashed(head, seed, layer, blocks))
    return torch.cat([fixed.expand(heads, -1, -1), torch.where(drawn < 0, drawn, drawn + globals)], -1)


def sample(population: Tensor, count: int, seeds: Tensor) -> Tensor:
    """Draw ``count`` numbers below ``population (N,)``, no two equal, for each of ``seeds (H, N)``.

    Floyd's algorithm (Bentley and Floyd 1987, CACM 30:9): every subset is equally likely, and the time does not depend
    on the population. Returns ``(H, N, count)`` int64; where there are no more than ``count``, all of them and -1.
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
