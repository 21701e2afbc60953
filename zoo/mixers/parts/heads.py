"""The frame of most mixers: project to heads, mix them, norm, gate, project back."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.mixers.base import Cost, Mixer
from zoo.mixers.parts.cache import real_tokens
from zoo.mixers.parts.costs import HeadSizes
from zoo.mixers.parts.gates import build_gate
from zoo.mixers.parts.norms import RMSNorm, build_norm
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, OutputNorm, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.parts.positions import Rotary, turn


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


class HeadMixer(Mixer, HeadSizes):
    """``W_o gate(norm(mix(W_q x, W_k x, W_v x)))``; a subclass writes ``mix`` and says what it costs.

    Args:
        kv_heads: key and value heads G; None for one per query head.
        head_dim: numbers D of each query and key; None for width / heads.
        value_dim: numbers E of each value; None for head_dim.
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
        kv_heads: KvHeads = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        rope_theta: RopeTheta = None,
        rope_fraction: RopeFraction = 1.0,
        gate: Gate = "none",
        norm: OutputNorm = "none",
        norm_heads: bool = False,
    ) -> None:
        super().__init__(width, heads, depth, layer)
        self.kv_heads = heads if kv_heads is None else kv_heads
        if heads % self.kv_heads:
            raise ValueError(
                f"heads={heads} is not divisible by kv_heads={self.kv_heads}: groups must be of equal size."
            )
        self.head_dim = share_of_width(width, heads) if head_dim is None else head_dim
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.rope_theta, self.rotated = rope_theta, _rotated(rope_theta, rope_fraction, self.head_dim)
        self.query = nn.Linear(width, heads * self.head_dim, bias=False)
        self.key = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.value = nn.Linear(width, self.kv_heads * self.value_dim, bias=False)
        self.query_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.key_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.norm_heads = norm_heads
        self.norm = (
            None if norm == "none" else build_norm(norm, self.value_dim if norm_heads else heads * self.value_dim)
        )
        self.gate = build_gate(gate, width, heads * self.value_dim)
        self.out = nn.Linear(heads * self.value_dim, width, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        marks: Tensor | None = None,
        cache: Any = None,
        lengths: Tensor | None = None,
        carry: dict[str, Any] | None = None,
    ) -> Tensor:
        """See :class:`zoo.mixers.base.Mixer`."""
        self.check_call(x, documents, cache, lengths, marks)
        if not x.shape[0] * x.shape[1]:
            none = x[..., :1].expand(*x.shape[:2], self.heads * self.value_dim)
            return self.out(none)  # no tokens: nothing is mixed, and a cache stays as it is
        if lengths is not None:  # a weight of 0 does not hide NaN
            x = x.masked_fill(~real_tokens(lengths, x)[..., None], 0)
        carry = {} if carry is None else carry
        self.prepare(carry, x, documents, cache)
        rotary: Rotary = carry["rotary"]
        call = Call(x, rotary.positions, documents, marks, cache, lengths)
        q, k = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.query, self.key))
        v = self.value(x).unflatten(-1, (-1, self.value_dim))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rope_theta is not None:
            table = rotary.table(self.rope_theta, self.rotated)
            q, k = turn(q, table), turn(k, table)
        y = self.mix(q, k, v, call)
        if self.norm is not None:
            y = self.norm(y if self.norm_heads else y.flatten(-2))
        y = y.reshape(*x.shape[:2], self.heads * self.value_dim)
        if y.dtype == v.dtype or self.norm is not None:
            return self._project(y.to(v.dtype), x)
        size = y.detach().abs().amax(-1, keepdim=True).clamp(min=1)  # of sums that fp16 holds only when projected
        projected = self._project((y / size).to(v.dtype), x)
        return (projected * size).to(projected.dtype)

    def prepare(self, carry: dict[str, Any], x: Tensor, documents: Tensor | None = None, cache: Any = None) -> None:
        """The positions of the pass, and the rotary table of this mixer."""
        if "rotary" not in carry:
            wide = torch.promote_types(x.dtype, torch.float32)
            carry["rotary"] = Rotary(self.positions(x, documents, cache), wide)
        if self.rope_theta is not None:
            carry["rotary"].table(self.rope_theta, self.rotated)

    def _project(self, y: Tensor, x: Tensor) -> Tensor:
        """Through the gate and back to the width of the model; linear in ``y``."""
        out: Tensor = self.out(y if self.gate is None else self.gate(y, x))
        return out

    @abstractmethod
    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """``(B, T, H, E)`` from queries ``(B, T, H, D)``, keys ``(B, T, G, D)`` and values ``(B, T, G, E)``."""

    @abstractmethod
    def mixing_flops(self, context: int) -> float:
        """FLOPs per token of :meth:`mix` in training, averaged over a sequence of the context length."""

    def reads(self, context: int, block: int = 1) -> float:
        """As many pairs as have the FLOPs of :meth:`mix`; see :class:`zoo.mixers.base.Mixer`."""
        return self.mixing_flops(context) * context / self.pair_flops

    def kept_numbers(self) -> int:
        """Queries, keys, values and outputs, each for all heads."""
        return 2 * self.heads * (self.head_dim + self.value_dim)

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

    @property
    def head_widths(self) -> tuple[int, int]:
        """Numbers D of a query and E of a value."""
        return self.head_dim, self.value_dim

    def cost(self, context: int, dtype: torch.dtype = torch.bfloat16) -> Cost:
        """The projections and what the subclass says of its mixing."""
        matrices, vectors = self.own_parameters()
        matrices += self.width * (self.heads + self.kv_heads) * (self.head_dim + self.value_dim)
        matrices += self.width * self.heads * self.value_dim if self.gate is not None else 0
        vectors += 2 * self.head_dim if self.query_norm is not None else 0
        vectors += sum(p.numel() for p in self.norm.parameters()) if self.norm is not None else 0
        return Cost(
            parameters=matrices + vectors,
            flops_per_token=2 * matrices + self.mixing_flops(max(context, 1)),
            decode_flops_per_token=2 * matrices + self.step_flops(context),
            cache_bytes=self.cache_bytes(context, dtype),
        )


def share_of_width(width: int, heads: int) -> int:
    """Numbers of each head where none are asked for: width / heads.

    Raises:
        ValueError: if that is no whole number.
    """
    if width % heads:
        raise ValueError(
            f"width={width} is not divisible by heads={heads}: each head takes width / heads numbers, or set head_dim."
        )
    return width // heads


def _rotated(rope_theta: float | None, fraction: float, width: int) -> int:
    """Numbers of each head that are rotated."""
    if rope_theta is None:
        return 0
    rotated = round(width * fraction)
    if rotated < 2 or rotated % 2:
        part = f"head_dim={width}" if fraction == 1 else f"rope_fraction={fraction} of head_dim={width}"
        raise ValueError(f"rope_theta turns pairs of numbers and needs an even number of them, got {part}.")
    return rotated
