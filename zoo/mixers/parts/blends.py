"""Blends of softmax attention over nearby or chosen keys with linear attention over all keys, in one layer.

Two parts, each for some of the heads or for all of them, and the ways to blend their outputs:
    heads   the first heads are of the local part, the others of the linear one; the outputs stand side by side
    gate    o = sigmoid(w_1 . x) o_local + sigmoid(w_2 . x) o_linear per head, as Native Sparse Attention blends its
            branches (Yuan et al. 2025, arXiv:2502.11089)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from zoo.mixers.caches import Cache, CacheList, KeyValueCache, RingCache, StateCache
from zoo.mixers.parts.attending import attend_softmax
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import HeadSizes, linear_flops, linear_step_flops, state_bytes, window_pairs
from zoo.mixers.parts.head_maps import HeadMap
from zoo.mixers.parts.heads import HeadMixer
from zoo.mixers.parts.options import Gate, HeadDim, QkNorm, RopeTheta, ValueDim
from zoo.mixers.parts.patterns import BlockPattern
from zoo.mixers.parts.recurrent import attend_linear


class Part(nn.Module, HeadSizes, ABC):
    """Attention of some heads of a layer, with its own cache and cost."""

    def __init__(self, heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim, self.value_dim = heads, heads, head_dim, value_dim

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Computes ``(B, T, heads, E)`` from queries, keys and values of these heads.

        The cache of the call is the part's own.
        """

    @abstractmethod
    def new_cache(
        self, batch_size: int, capacity: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> Cache:
        """An empty cache."""

    @abstractmethod
    def mixing_flops(self, context: int) -> float:
        """FLOPs per token in training, averaged over a sequence of the context length."""

    @abstractmethod
    def step_flops(self, context: int) -> float:
        """FLOPs of the next token after the context."""

    @abstractmethod
    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """Bytes of the part's cache for a sequence of the context length, in ``dtype``."""


class WindowPart(Part):
    """Softmax attention over the latest ``window`` keys, the query's own included.

    Raises:
        ValueError: if the window is below 1.
    """

    def __init__(self, heads: int, head_dim: int, value_dim: int, window: int) -> None:
        super().__init__(heads, head_dim, value_dim)
        if window < 1:
            raise ValueError(f"window={window}: expected at least 1, which is the query's own key.")
        self.window = window

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        return attend_softmax(q, k, v, call, window=self.window)

    def new_cache(
        self, batch_size: int, capacity: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> RingCache:
        """Returns a cache of the latest keys and values."""
        return RingCache(batch_size, self.window, 0, capacity, self.heads, self.head_dim, device, dtype, self.value_dim)

    def mixing_flops(self, context: int) -> float:
        return self.pair_flops * window_pairs(context, self.window) / context

    def step_flops(self, context: int) -> float:
        return self.pair_flops * min(context + 1, self.window)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        return min(context, self.window) * self.token_numbers * dtype.itemsize


class PatternPart(Part):
    """Softmax attention over the blocks of a pattern."""

    def __init__(self, heads: int, head_dim: int, value_dim: int, pattern: BlockPattern) -> None:
        super().__init__(heads, head_dim, value_dim)
        self.pattern = pattern

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        return self.pattern.attend(q, k, v, call)

    def new_cache(
        self, batch_size: int, capacity: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> KeyValueCache:
        """Returns a cache of keys and values of all tokens, since a later query may read any block."""
        return KeyValueCache(batch_size, capacity, self.heads, self.head_dim, device, dtype, self.value_dim)

    def mixing_flops(self, context: int) -> float:
        return self.pair_flops * self.pattern.pairs(context) / context

    def step_flops(self, context: int) -> float:
        return self.pair_flops * self.pattern.step_keys(context)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        return context * self.token_numbers * dtype.itemsize


class LinearPart(Part):
    """Normalized linear attention over all keys: ``phi(q_t) S_t / (phi(q_t) . z_t)``.

    Args:
        heads: number of heads.
        head_dim: width D of queries and keys.
        value_dim: width E of values.
        feature_map: name of a map of :class:`zoo.mixers.parts.head_maps.HeadMap`.
        features: width that each head is projected to before the map; None for the default of the map.
    """

    def __init__(self, heads: int, head_dim: int, value_dim: int, feature_map: str, features: int | None) -> None:
        super().__init__(heads, head_dim, value_dim)
        self.map = HeadMap(feature_map, heads, head_dim, features)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        return attend_linear(self.map.query(q), self.map.key(k), v, None, call, normalize=True)

    def new_cache(
        self, batch_size: int, capacity: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> StateCache:
        """Returns a cache of the state and its normalizer, in fp32 or wider."""
        return StateCache((batch_size, self.heads, self.map.width, self.value_dim), device, dtype, normalize=True)

    def mixing_flops(self, context: int) -> float:
        return self.map.flops + linear_flops(self.heads, self.map.width, self.value_dim + 1, context)

    def step_flops(self, context: int) -> float:
        return self.map.flops + linear_step_flops(self.heads, self.map.width, self.value_dim, normalize=True)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        return state_bytes(self.heads, self.map.width, self.value_dim + 1, dtype)


Blend = Callable[["BlendMixer", Tensor, Tensor, Tensor, Call], Tensor]


def of_parts(call: Call, count: int) -> list[Call]:
    """Splits a call into one for each of ``count`` parts, each with the cache of its part."""
    return [call] * count if call.cache is None else [replace(call, cache=cache) for cache in call.cache.parts]


def _side_by_side(mixer: BlendMixer, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    parts = mixer.part_list()
    sizes, calls = [part.heads for part in parts], of_parts(call, len(parts))
    pieces = zip(parts, q.split(sizes, 2), k.split(sizes, 2), v.split(sizes, 2), calls)
    return torch.cat([part.attend(qs, ks, vs, own) for part, qs, ks, vs, own in pieces], 2)


def _gated_sum(mixer: BlendMixer, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
    parts = mixer.part_list()
    outputs = [part.attend(q, k, v, own) for part, own in zip(parts, of_parts(call, len(parts)))]
    assert mixer.shares is not None
    shares = torch.sigmoid(mixer.shares(call.x)).unflatten(-1, (len(parts), mixer.heads, 1)).unbind(2)
    return sum((share * output for share, output in zip(shares, outputs)), torch.zeros_like(outputs[0]))


class BlendMixer(HeadMixer):
    """Base of layers with a local part and a linear part; a subclass makes the parts and passes them to :meth:`take`.

    Args:
        mode: how they are blended, a key of ``modes``.
        local_heads: number of heads of the local part in the mode ``heads``; None for half of them, rounded up.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies; None for no positions.

    Raises:
        ValueError: on a mode or a number of heads that does not exist.
    """

    modes: ClassVar[dict[str, Blend]] = {"heads": _side_by_side, "gate": _gated_sum}
    parts: nn.ModuleList

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        layer: int,
        *,
        mode: str,
        local_heads: int | None,
        head_dim: HeadDim,
        value_dim: ValueDim,
        qk_norm: QkNorm,
        gate: Gate,
        rope_theta: RopeTheta,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, qk_norm=qk_norm, gate=gate,
            rope_theta=rope_theta,
        )  # fmt: skip
        if mode not in self.modes:
            raise ValueError(f"mode={mode!r}: expected one of {', '.join(self.modes)}.")
        if local_heads is not None and mode != "heads":
            raise ValueError(f"local_heads={local_heads} with mode={mode!r}: only mode='heads' splits the heads.")
        if local_heads is not None and not 0 <= local_heads <= heads:
            raise ValueError(f"local_heads={local_heads}: expected 0 to heads={heads}.")
        self.mode, self.local_heads, self.linear_heads = mode, heads, heads
        if mode == "heads":
            self.local_heads = -(-heads // 2) if local_heads is None else local_heads
            self.linear_heads = heads - self.local_heads
        self.shares = nn.Linear(width, 2 * heads, bias=False) if mode == "gate" else None

    @property
    def normalized(self) -> bool:
        return self.mode != "gate"

    def take(self, parts: Iterable[Part]) -> None:
        """Registers the parts that have heads."""
        self.parts = nn.ModuleList(part for part in parts if part.heads)

    def part_list(self) -> list[Part]:
        """Returns the parts in their order."""
        return [cast(Part, part) for part in self.parts]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        return self.modes[self.mode](self, q, k, v, call)

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CacheList:
        """The caches of the parts."""
        return CacheList([part.new_cache(batch_size, capacity or 0, device, dtype) for part in self.part_list()])

    def mixing_flops(self, context: int) -> float:
        return sum(part.mixing_flops(context) for part in self.part_list())

    def step_flops(self, context: int) -> float:
        return sum(part.step_flops(context) for part in self.part_list())

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        return sum(part.cache_bytes(context, dtype) for part in self.part_list())

    def own_parameters(self) -> tuple[int, int]:
        """Numbers of the gates that blend the parts; the parts count their own parameters in their FLOPs."""
        matrices = 0 if self.shares is None else self.shares.weight.numel()
        return matrices, sum(p.numel() for p in self.parts.parameters())
