"""Base of most mixers: project to heads, mix them, norm, gate, project back."""

from __future__ import annotations

from abc import abstractmethod
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from zoo.mixers.base import Cost, Mixer
from zoo.mixers.caches import real_tokens
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import HeadSizes
from zoo.mixers.parts.gates import build_gate
from zoo.mixers.parts.norms import EPS, RMSNorm, build_norm
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, OutputNorm, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.parts.positions import Rotary, turn
from zoo.mixers.parts.short_conv import ShortConvolution


class HeadMixer(Mixer, HeadSizes):
    """Base of mixers ``W_o gate(norm(mix(W_q x, W_k x, W_v x)))``; a subclass writes ``mix`` and its costs.

    Args:
        kv_heads: number of key and value heads G, a divisor of the heads; None for one per query head.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        rope_theta: base of the rotary frequencies; None for no positions.
        rope_fraction: part of each head that is rotated; the rest carries no position.
        gate: output gate, ``none``, ``linear``, ``sigmoid`` or ``silu``.
        norm: of the output before the gate, ``none``, ``rms`` or ``srms``.
        norm_heads: norm each head by itself and not all of them together.
        norm_eps: what is added to the mean square in that norm.
        gate_rank: rank of the gate's matrix; None for a full one.
        query_heads: heads of queries where they are not ``heads``.
        value_heads: heads of values and of the output where they are not those of keys and of queries.
        writes: keys and values that each token has, per head.
        conv: tokens of a causal convolution of each number of queries, keys and values, followed by SiLU; 0 for none.
        conv_bias: whether the convolution adds a bias.

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
        norm_eps: float = EPS,
        gate_rank: int | None = None,
        query_heads: int | None = None,
        value_heads: int | None = None,
        writes: int = 1,
        conv: int = 0,
        conv_bias: bool = False,
    ) -> None:
        super().__init__(width, heads, depth, layer)
        self.kv_heads = heads if kv_heads is None else kv_heads
        if heads % self.kv_heads:
            raise ValueError(
                f"heads={heads} is not divisible by kv_heads={self.kv_heads}: groups must be of equal size."
            )
        self.query_heads = heads if query_heads is None else query_heads
        self.value_heads = self.kv_heads if value_heads is None else value_heads
        self.out_heads = heads if value_heads is None else value_heads
        self.head_dim = share_of_width(width, heads) if head_dim is None else head_dim
        self.value_dim = self.head_dim if value_dim is None else value_dim
        self.rope_theta, self.rotated = rope_theta, _rotated(rope_theta, rope_fraction, self.head_dim)
        sizes = [self.query_heads * self.head_dim, writes * self.kv_heads * self.head_dim]
        sizes.append(writes * self.value_heads * self.value_dim)
        self.query, self.key, self.value = (nn.Linear(width, size, bias=False) for size in sizes)
        self.conv = ShortConvolution(sizes, conv, bias=conv_bias) if conv else None
        self.query_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.key_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.norm_heads = norm_heads
        self.norm = (
            None
            if norm == "none"
            else build_norm(norm, self.value_dim if norm_heads else self.out_heads * self.value_dim, norm_eps)
        )
        self.gate = build_gate(gate, width, self.out_heads * self.value_dim, gate_rank)
        self.out = nn.Linear(self.out_heads * self.value_dim, width, bias=False)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        separators: Tensor | None = None,
        cache: Any = None,
        lengths: Tensor | None = None,
        carry: dict[str, Any] | None = None,
    ) -> Tensor:
        self.check_call(x, documents, cache, lengths, separators)
        if not x.shape[0] * x.shape[1]:
            none = x[..., :1].expand(*x.shape[:2], self.out_heads * self.value_dim)
            return self.out(none)  # no tokens: nothing is mixed, and a cache stays as it is
        if lengths is not None:  # a weight of 0 does not hide NaN
            x = x.masked_fill(~real_tokens(lengths, x)[..., None], 0)
        carry = {} if carry is None else carry
        self.prepare(carry, x, documents, cache)
        rotary: Rotary = carry["rotary"]
        call = Call(x, rotary.positions, documents, separators, cache, lengths)
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.conv is not None:
            q, k, v = self.conv((q, k, v), call)
        q, k = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k))
        v = v.unflatten(-1, (-1, self.value_dim))
        if self.query_norm is not None and self.key_norm is not None:
            q, k = self.query_norm(q), self.key_norm(k)
        if self.rope_theta is not None:
            table = rotary.table(self.rope_theta, self.rotated)
            q, k = turn(q, table), turn(k, table)
        return self.finish(self.mix(q, k, v, call), x, v.dtype)

    def finish(self, y: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, T, C)`` of ``dtype`` from what was mixed, ``(B, T, H, E)``, and the input: norm, gate, projection."""
        if self.norm is not None:
            y = self.norm(y if self.norm_heads else y.flatten(-2))
        y = y.reshape(*x.shape[:2], self.out_heads * self.value_dim)
        if y.dtype == dtype or self.norm is not None:
            return self._project(y.to(dtype), x)
        size = y.detach().abs().amax(-1, keepdim=True).clamp(min=1)  # of sums that fp16 holds only when projected
        projected = self._project((y / size).to(dtype), x)
        return (projected * size).to(projected.dtype)

    def prepare(self, carry: dict[str, Any], x: Tensor, documents: Tensor | None = None, cache: Any = None) -> None:
        """Puts the positions of the pass and the rotary table of this mixer into ``carry``."""
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
        """Mixes queries ``(B, T, H, D)``, keys ``(B, T, G, D)`` and values ``(B, T, G, E)`` to ``(B, T, H, E)``."""

    @abstractmethod
    def mixing_flops(self, context: int) -> float:
        """FLOPs per token of :meth:`mix` in training, averaged over a sequence of the context length."""

    def reads(self, context: int, block: int = 1) -> float:
        """Number of query-key pairs with the FLOPs of :meth:`mix`; see :meth:`zoo.mixers.Mixer.reads`."""
        return self.mixing_flops(context) * context / self.pair_flops

    def kept_numbers(self) -> int:
        """Queries, keys, values and outputs, each for all heads, and what a convolution takes."""
        shared = 2 * (self.heads * self.head_dim + self.out_heads * self.value_dim)
        return shared if self.conv is None else shared + self.conv.channels

    @abstractmethod
    def step_flops(self, context: int) -> float:
        """FLOPs of :meth:`mix` for the next token after the context."""

    def step_bytes(self, context: int, dtype: torch.dtype) -> float:
        """Bytes that :meth:`mix` reads from a cache of ``dtype`` for the next token.

        The default follows from :meth:`step_flops`: each number serves one multiply-add of every query head that shares
        it. A mixer whose heads of a group read different keys, or that stores some numbers in another precision,
        overrides it.
        """
        return self.step_flops(context) * self.kv_heads / (2 * self.heads) * dtype.itemsize

    @abstractmethod
    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """Bytes of the cache of a sequence of the context length, in ``dtype``."""

    def own_parameters(self) -> tuple[int, int]:
        """Numbers of parameters of the subclass: those in matrices that multiply every token, and all others."""
        return 0, 0

    @property
    def head_widths(self) -> tuple[int, int]:
        """Numbers D of a query and E of a value."""
        return self.head_dim, self.value_dim

    def cost(self, context: int, dtype: torch.dtype = torch.bfloat16) -> Cost:
        matrices, vectors = self.own_parameters()
        matrices += sum(matrix.weight.numel() for matrix in (self.query, self.key, self.value, self.out))
        matrices += sum(p.numel() for p in self.gate.parameters()) if self.gate is not None else 0
        vectors += sum(p.numel() for p in self.conv.parameters()) if self.conv is not None else 0
        vectors += 2 * self.head_dim if self.query_norm is not None else 0
        vectors += sum(p.numel() for p in self.norm.parameters()) if self.norm is not None else 0
        multiplied = matrices + (self.conv.weight.numel() if self.conv is not None else 0)
        return Cost(
            parameters=matrices + vectors,
            flops_per_token=2 * multiplied + self.mixing_flops(max(context, 1)),
            decode_flops_per_token=2 * multiplied + self.step_flops(context),
            cache_bytes=self.cache_bytes(context, dtype),
        )


def share_of_width(width: int, heads: int, share: Fraction = Fraction(1), option: str | None = "head_dim") -> int:
    """Numbers of each head where none are asked for: width / heads, or a share of that.

    Args:
        width: of the model.
        heads: that divide it.
        share: of width / heads.
        option: that asks for other numbers; None if none does.

    Raises:
        ValueError: if that is no whole number.
    """
    if heads < 1:
        raise ValueError(f"heads={heads}: expected at least 1.")
    if width % heads:
        instead = "and cannot have others; choose heads that divide it." if option is None else f"or set {option}."
        raise ValueError(
            f"width={width} is not divisible by heads={heads}: each head takes width / heads numbers, {instead}"
        )
    numbers = share * (width // heads)
    if numbers.denominator != 1:
        raise ValueError(
            f"width / heads = {width // heads}: each head takes {share} of it, which is no whole number; set {option}."
        )
    return int(numbers)


def _rotated(rope_theta: float | None, fraction: float, width: int) -> int:
    """Numbers of each head that are rotated."""
    if rope_theta is None:
        return 0
    rotated = round(width * fraction)
    if rotated < 2 or rotated % 2:
        part = f"head_dim={width}" if fraction == 1 else f"rope_fraction={fraction} of head_dim={width}"
        raise ValueError(f"rope_theta turns pairs of numbers and needs an even number of them, got {part}.")
    return rotated
