"""The frame of most mixers: project to heads, mix them, norm, gate, project back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.mixers.base import Cost, Mixer
from zoo.mixers.parts.cache import real_tokens
from zoo.mixers.parts.gates import build_gate
from zoo.mixers.parts.norms import RMSNorm, build_norm
from zoo.mixers.parts.positions import check_base, rotate


@dataclass(frozen=True)
class Call:
    """What a mixer was called with, beside its heads.

    Attributes:
        x: input of the layer, ``(B, T, C)``.
        positions: of each token in its document, ``(1 or B, T)``.
        documents, marks, cache, lengths: as in :meth:`zoo.mixers.Mixer.forward`.
    """

    x: Tensor
    positions: Tensor
    documents: Tensor | None
    marks: Tensor | None
    cache: Any
    lengths: Tensor | None

    def real(self) -> Tensor | None:
        """``(B, T)``: True for tokens, False for the padding of a ragged piece; None where all are real."""
        return None if self.lengths is None else real_tokens(self.lengths, self.x)


class HeadMixer(Mixer):
    """``W_o gate(norm(mix(W_q x, W_k x, W_v x)))``; a subclass writes ``mix`` and says what it costs.

    Args:
        kv_heads: key and value heads G; None for one per query head.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        rope_theta: base of the rotary frequencies; None for no positions.
        rope_fraction: part of each head that is rotated; the rest carries no position.
        gate: output gate, ``none``, ``linear``, ``sigmoid`` or ``silu``.
        norm: of the output before the gate, ``none``, ``rms`` or ``srms``.
        norm_heads: norm each head by itself and not all of them together.

    Raises:
        ValueError: on values that do not exist or do not fit together.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        layer: int,
        *,
        kv_heads: int | None = None,
        qk_norm: bool = False,
        rope_theta: float | None = None,
        rope_fraction: float = 1.0,
        gate: str = "none",
        norm: str = "none",
        norm_heads: bool = False,
    ) -> None:
        super().__init__(width, heads, depth, layer)
        self.kv_heads = heads if kv_heads is None else kv_heads
        if self.kv_heads < 1 or heads % self.kv_heads:
            raise ValueError(
                f"heads={heads} is not divisible by kv_heads={self.kv_heads}: groups must be of equal size."
            )
        self.rope_theta, self.rotated = rope_theta, _rotated(rope_theta, rope_fraction, self.head_width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, self.kv_heads * self.head_width, bias=False)
        self.value = nn.Linear(width, self.kv_heads * self.head_width, bias=False)
        self.query_norm = RMSNorm(self.head_width) if qk_norm else None
        self.key_norm = RMSNorm(self.head_width) if qk_norm else None
        self.norm_heads = norm_heads
        self.norm = None if norm == "none" else build_norm(norm, self.head_width if norm_heads else width)
        self.gate = build_gate(gate, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        marks: Tensor | None = None,
        cache: Any = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """See :class:`zoo.mixers.base.Mixer`."""
        self.check_call(x, documents, cache, lengths, marks)
        if not x.shape[0] * x.shape[1]:
            return self.out(x)  # no tokens: nothing is mixed, and a cache stays as it is
        if lengths is not None:  # a weight of 0 does not hide NaN
            x = x.masked_fill(~real_tokens(lengths, x)[..., None], 0)
        call = Call(x, self.positions(x, documents, cache), documents, marks, cache, lengths)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_width)) for proj in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rope_theta is not None:
            q, k = (rotate(y, call.positions, self.rope_theta, self.rotated) for y in (q, k))
        y = self.mix(q, k, v, call)
        if self.norm is not None:
            y = self.norm(y if self.norm_heads else y.flatten(-2))
        y = y.reshape(*x.shape[:2], self.width)
        if y.dtype == v.dtype or self.norm is not None:
            return self._project(y.to(v.dtype), x)
        size = y.detach().abs().amax(-1, keepdim=True).clamp(min=1)  # of sums that fp16 holds only when projected
        projected = self._project((y / size).to(v.dtype), x)
        return (projected * size).to(projected.dtype)

    def _project(self, y: Tensor, x: Tensor) -> Tensor:
        """Through the gate and back to the width of the model; linear in ``y``."""
        out: Tensor = self.out(y if self.gate is None else self.gate(y, x))
        return out

    @abstractmethod
    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """``(B, T, H, D)`` from queries ``(B, T, H, D)`` and keys and values ``(B, T, G, D)``."""

    @abstractmethod
    def mixing_flops(self, context: int) -> float:
        """FLOPs per token of :meth:`mix` in training, averaged over a sequence of the context length."""

    @abstractmethod
    def step_flops(self, context: int) -> float:
        """FLOPs of :meth:`mix` for the next token after the context."""

    def step_bytes(self, context: int, dtype: torch.dtype) -> float:
        """Bytes of a cache of ``dtype`` that :meth:`mix` reads for the next token, where it does not read all of it.

        Each number serves one multiply-add of every query head that shares it; a mixer whose heads of a group read
        different keys, or that keeps some numbers in another precision, says so.
        """
        return self.step_flops(context) * self.kv_heads / (2 * self.heads) * dtype.itemsize

    @abstractmethod
    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """Bytes that a sequence of the context length keeps, with a cache of ``dtype``."""

    def own_parameters(self) -> tuple[int, int]:
        """What the subclass trains beside the frame: numbers in matrices that every token is multiplied by, others."""
        return 0, 0

    def cost(self, context: int, dtype: torch.dtype = torch.bfloat16) -> Cost:
        """The projections and what the subclass says of its mixing."""
        matrices, vectors = self.own_parameters()
        matrices += 2 * self.width * (self.width + self.kv_heads * self.head_width)
        matrices += self.width**2 if self.gate is not None else 0
        vectors += 2 * self.head_width if self.query_norm is not None else 0
        vectors += sum(p.numel() for p in self.norm.parameters()) if self.norm is not None else 0
        return Cost(
            parameters=matrices + vectors,
            flops_per_token=2 * matrices + self.mixing_flops(max(context, 1)),
            decode_flops_per_token=2 * matrices + self.step_flops(context),
            cache_bytes=self.cache_bytes(context, dtype),
        )


def _rotated(rope_theta: float | None, fraction: float, width: int) -> int:
    """Numbers of each head that are rotated."""
    check_base(rope_theta)
    if not 0 < fraction <= 1:
        raise ValueError(f"rope_fraction={fraction}: expected a part of each head, over 0 and at most 1.")
    if rope_theta is None:
        return 0
    rotated = round(width * fraction)
    if rotated < 2 or rotated % 2:
        part = f"width / heads = {width}" if fraction == 1 else f"rope_fraction={fraction} of width / heads = {width}"
        raise ValueError(f"rope_theta needs an even head width, got {part}.")
    return rotated
