"""A window of softmax attention and linear attention of all that came before, in one layer.

    heads    the first heads read a window, the others are linear; heads side by side
    gate     o = sigmoid(w_1 . x) o_window + sigmoid(w_2 . x) o_linear, per head
    shared   one normalizer for both: a key in the window weighs exp(q . k / sqrt(D)), one that has left phi(q) . phi(k)

             o_t = (sum_{t-w < j <= t} e^{q_t . k_j / sqrt(D)} v_j + phi(q_t) S_{t-w}) / (the same with 1 for v),
             S_t = S_{t-1} + phi(k_t) v_t^T

Gates: Yuan et al. 2025 (Native Sparse Attention, arXiv:2502.11089). One normalizer: Zhang et al. 2024 (LoLCATs,
arXiv:2410.10254). There the state lags by the window, so that each key is counted once: it is softmax attention while
all keys are in the window, and linear attention if the window is 0.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from zoo.mixers.caches import CacheList, RingCache, StateCache, View
from zoo.mixers.parts.attending import attend
from zoo.mixers.parts.blends import Blend, BlendMixer, LinearPart, Part, WindowPart, of_parts
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import linear_flops, linear_step_flops, state_bytes, window_pairs
from zoo.mixers.parts.head_maps import HeadMap
from zoo.mixers.parts.merge import merge
from zoo.mixers.parts.options import Gate, HeadDim, QkNorm, RopeTheta, ValueDim
from zoo.mixers.parts.recurrent import attend_linear
from zoo.mixers.registry import register
from zoo_kernels import softmax_attention, softmax_attention_step


@register("window_linear")
class WindowLinearAttention(BlendMixer):
    """Softmax attention over a window beside linear attention over all earlier keys.

    Args:
        mode: how the two are blended: ``heads``, ``gate`` or ``shared``.
        window: number of latest keys of softmax attention, the query's own included; 0 only if ``shared``.
        feature_map: ``elu+1``, ``taylor`` or ``hedgehog``, see :mod:`zoo.mixers.parts.head_maps`; None for ``taylor``
            if ``shared``, which refuses ``elu+1`` since it does not resemble exp, and for ``elu+1`` otherwise.
        features: width that a head is projected to before a learned map; None for the default of the map.
        local_heads: number of windowed heads in the mode ``heads``; None for half of them, rounded up.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies, for both parts; None for no positions.

    Raises:
        ValueError: on values outside these.
    """

    modes: ClassVar[dict[str, Blend]] = BlendMixer.modes | {"shared": BlendMixer.modes["heads"]}

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        mode: str = "heads",
        window: int = 128,
        feature_map: str | None = None,
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
        dims = self.head_dim, self.value_dim
        if mode == "shared":
            chosen = "taylor" if feature_map is None else feature_map
            self.take([SharedPart(heads, *dims, window, chosen, features)])
            return
        linear = LinearPart(self.linear_heads, *dims, feature_map or "elu+1", features)
        self.take([WindowPart(self.local_heads, *dims, window), linear])


class SharedPart(Part):
    """Softmax attention over a window and, under the same normalizer, linear attention over the keys that have left it.

    Args:
        heads: number of heads.
        head_dim: width D of queries and keys.
        value_dim: width E of values.
        window: number of keys of softmax attention; 0 for none.
        feature_map: name of a map of :class:`HeadMap` that resembles exp.
        features: width that each head is projected to before the map; None for the default of the map.
    """

    def __init__(
        self, heads: int, head_dim: int, value_dim: int, window: int, feature_map: str, features: int | None
    ) -> None:
        super().__init__(heads, head_dim, value_dim)
        if window < 0:
            raise ValueError(f"window={window}: expected at least 0.")
        if feature_map == "elu+1":
            raise ValueError("feature_map='elu+1': expected one of taylor, hedgehog with mode='shared', as exp is.")
        self.window = window
        self.map = HeadMap(feature_map, heads, head_dim, features)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Attends to both sets of keys and merges them by the logarithms of their sums."""
        of_ring, of_state = of_parts(call, 2)
        far = self._far(q, *leaving(k, v, self.window, of_ring.cache), of_state)  # before the ring takes the new keys
        return merge([self._near(q, k, v, of_ring), far] if self.window else [far])[0]

    def _near(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Softmax attention over the window, and the logarithm of its sum."""
        both = attend(q, k, v, call, partial(_with_sums, window=self.window), self._step_with_sums)
        return both[..., :-1].to(q.dtype), both[..., -1]

    def _step_with_sums(self, q: Tensor, view: View) -> Tensor:
        """The same of one query per row over the ring, ``(B, H, E + 1)``."""
        output, lse = softmax_attention_step(
            q, view.keys, view.values, view.lengths, window=self.window, ring=view.ring, return_lse=True
        )
        return torch.cat([output.to(lse.dtype), lse[..., None]], -1)

    def _far(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Linear attention over the keys that have left; ``k`` and ``v`` leave as the queries come."""
        left = (call.positions >= self.window)[..., None]
        keys = self.map.key(k).masked_fill(~left[..., None], 0)
        sums = attend_linear(self.map.query(q), keys, torch.cat([v, torch.ones_like(v[..., :1])], -1), None, call)
        sums = sums.to(torch.promote_types(q.dtype, torch.float32))
        total = sums[..., -1].clamp(min=self.map.floor)
        return (sums[..., :-1] / total[..., None]).to(q.dtype), total.log().masked_fill(~left, -torch.inf)

    def new_cache(
        self, batch_size: int, capacity: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> CacheList:
        """The keys and values of the window, and the state, whose last column is its normalizer."""
        ring = RingCache(batch_size, self.window, 0, capacity, self.heads, self.head_dim, device, dtype, self.value_dim)
        return CacheList(
            [ring, StateCache((batch_size, self.heads, self.map.width, self.value_dim + 1), device, dtype)]
        )

    def mixing_flops(self, context: int) -> float:
        near = self.pair_flops * window_pairs(context, self.window) / context
        return near + self.map.flops + linear_flops(self.heads, self.map.width, self.value_dim + 1, context)

    def step_flops(self, context: int) -> float:
        near = self.pair_flops * min(context + 1, self.window)
        return near + self.map.flops + linear_step_flops(self.heads, self.map.width, self.value_dim + 1)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        ring = min(context, self.window) * self.token_numbers * dtype.itemsize
        return ring + state_bytes(self.heads, self.map.width, self.value_dim + 1, dtype)


def leaving(k: Tensor, v: Tensor, window: int, ring: RingCache | None) -> tuple[Tensor, Tensor]:
    """Key and value, ``window`` tokens back, that leave the window at each token of a piece.

    Args:
        k: keys ``(B, T, H, D)`` of the piece.
        v: values ``(B, T, H, E)`` of the piece.
        window: number of tokens of the window.
        ring: cache of the tokens before the piece; None if there are none.

    Returns:
        Arrays of the same shape; at positions below ``window``, which no token leaves, they hold anything finite.
    """
    count = min(window, k.shape[1])
    if ring is None:
        held = [x.new_zeros(len(x), count, *x.shape[2:]) for x in (k, v)]
    else:
        held = [ring.unpacked(old, new) for old, new in zip(ring.oldest(count), (k, v))]
    keys, values = (torch.cat([old, x[:, : x.shape[1] - count]], 1) for old, x in zip(held, (k, v)))
    return keys, values


def _with_sums(
    q: Tensor, k: Tensor, v: Tensor, *, window: int | None = None, documents: Tensor | None = None
) -> Tensor:
    """Softmax attention with its log-sum-exp as a last column, ``(B, Tq, H, E + 1)`` in fp32 or better."""
    output, lse = softmax_attention(q, k, v, window=window, documents=documents, return_lse=True)
    return torch.cat([output.to(lse.dtype), lse[..., None]], -1)
