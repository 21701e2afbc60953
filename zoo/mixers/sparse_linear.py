"""Softmax attention over BigBird's blocks and linear attention over all keys, in one layer.

    heads    the first heads read global, recent and random blocks, the others are linear; heads side by side
    gate     o = sigmoid(w_1 . x) o_sparse + sigmoid(w_2 . x) o_linear, per head

Blocks: Zaheer et al. 2020 (arXiv:2007.14062), see :mod:`zoo.mixers.bigbird`. A sparse part for the few large weights
beside a linear one for the many small: Chen et al. 2021 (Scatterbrain, arXiv:2110.15343). Gates: Yuan et al. 2025
(Native Sparse Attention, arXiv:2502.11089).
"""

from __future__ import annotations

from functools import partial

from zoo.mixers.bigbird import bigbird_blocks, check_counts
from zoo.mixers.parts.blends import BlendMixer, LinearPart, PatternPart
from zoo.mixers.parts.options import Gate, HeadDim, QkNorm, RopeTheta, ValueDim
from zoo.mixers.parts.patterns import BlockPattern
from zoo.mixers.registry import register


@register("sparse_linear")
class SparseLinearAttention(BlendMixer):
    """Softmax attention over BigBird's blocks beside linear attention over all keys.

    Args:
        mode: how the two are blended: ``heads`` or ``gate``.
        block: tokens of a block: 16, 32, 64 or 128.
        window_blocks: latest blocks that a query reads, its own included.
        random_blocks: random blocks per query block and head.
        global_blocks: first blocks of the document, which all queries read.
        seed: seed of the random blocks.
        feature_map: ``elu+1``, ``taylor`` or ``hedgehog``, see :mod:`zoo.mixers.parts.head_maps`.
        features: width that a head is projected to before a learned map; None for the default of the map.
        local_heads: number of heads that read blocks in the mode ``heads``; None for half of them, rounded up.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies, for both parts; None for no positions.

    Raises:
        ValueError: on values outside these.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        mode: str = "heads",
        block: int = 64,
        window_blocks: int = 3,
        random_blocks: int = 3,
        global_blocks: int = 1,
        seed: int = 0,
        feature_map: str = "elu+1",
        features: int | None = None,
        local_heads: int | None = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        gate: Gate = "none",
        rope_theta: RopeTheta = 10000.0,
    ) -> None:
        super().__init__(
            width,
            heads,
            depth,
            layer,
            head_dim=head_dim,
            value_dim=value_dim,
            mode=mode,
            local_heads=local_heads,
            qk_norm=qk_norm,
            gate=gate,
            rope_theta=rope_theta,
        )  # fmt: skip
        check_counts(window_blocks, random_blocks, global_blocks)
        listed = partial(
            bigbird_blocks, window_blocks=window_blocks, random_blocks=random_blocks, global_blocks=global_blocks,
            seed=seed, layer=layer, heads=self.local_heads,
        )  # fmt: skip
        dims = self.head_dim, self.value_dim
        linear = LinearPart(self.linear_heads, *dims, feature_map, features)
        self.take([PatternPart(self.local_heads, *dims, BlockPattern(block, listed)), linear])
