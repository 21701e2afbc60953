"""Exact softmax attention with any number of key heads.

    o_t = sum_{j <= t} softmax_j(q_t . k_j / sqrt(D)) v_j;  query head h reads key head h // (H // G).

Multi-head: Vaswani et al. 2017 (arXiv:1706.03762). Multi-query, G = 1: Shazeer 2019 (arXiv:1911.02150).
Grouped-query: Ainslie et al. 2023 (arXiv:2305.13245).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels import softmax_attention
from zoo.mixers.base import Cost, Mixer
from zoo.mixers.cache import KeyValueCache
from zoo.mixers.gates import build_gate
from zoo.mixers.norms import RMSNorm
from zoo.mixers.positions import rotate
from zoo.mixers.registry import register


@register("softmax")
class SoftmaxAttention(Mixer):
    """Softmax attention.

    Args:
        kv_heads: key and value heads G; None for one per query head.
        qk_norm: RMS-normalise queries and keys per head, before the positions.
        gate: output gate, ``none``, ``linear`` or ``sigmoid``.
        rope: base of the rotary frequencies; None for no positions.

    Raises:
        ValueError: if heads is not divisible by kv_heads, or the head width is odd with ``rope``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        kv_heads: int | None = None,
        qk_norm: bool = False,
        gate: str = "none",
        rope: float | None = 10000.0,
    ) -> None:
        super().__init__(width, heads, depth, layer)
        self.kv_heads = heads if kv_heads is None else kv_heads
        if self.kv_heads < 1 or heads % self.kv_heads:
            raise ValueError(
                f"heads={heads} is not divisible by kv_heads={self.kv_heads}: groups must be of equal size."
            )
        if rope is not None and self.head_width % 2:
            raise ValueError(f"rope needs an even head width, got width / heads = {self.head_width}.")
        self.rope = rope
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, self.kv_heads * self.head_width, bias=False)
        self.value = nn.Linear(width, self.kv_heads * self.head_width, bias=False)
        self.query_norm = RMSNorm(self.head_width) if qk_norm else None
        self.key_norm = RMSNorm(self.head_width) if qk_norm else None
        self.gate = build_gate(gate, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        marks: Tensor | None = None,
        cache: KeyValueCache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """See :class:`zoo.mixers.base.Mixer`."""
        self.check_call(documents, cache, lengths)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_width)) for proj in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rope is not None:
            positions = self.positions(x, documents, cache)
            q, k = rotate(q, positions, self.rope), rotate(k, positions, self.rope)
        y = cache.attend(q, k, v, lengths) if cache is not None else softmax_attention(q, k, v, documents=documents)
        y = y.flatten(-2)
        return self.out(y if self.gate is None else self.gate(y, x))

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KeyValueCache:
        """Keys and values; grows beyond ``capacity``."""
        return KeyValueCache(batch_size, capacity or 0, self.kv_heads, self.head_width, device, dtype)

    def cost(self, context: int, dtype: torch.dtype = torch.bfloat16) -> Cost:
        """Every query reads (context + 1) / 2 keys on average in training, context + 1 keys in decoding."""
        matrices = 2 * self.width * (self.width + self.kv_heads * self.head_width)
        matrices += self.width**2 if self.gate is not None else 0
        vectors = 2 * self.head_width if self.query_norm is not None else 0
        return Cost(
            parameters=matrices + vectors,
            flops_per_token=2 * matrices + 4 * self.width * (context + 1) / 2,
            decode_flops_per_token=2 * matrices + 4 * self.width * (context + 1),
            cache_bytes=2 * context * self.kv_heads * self.head_width * dtype.itemsize,
        )
