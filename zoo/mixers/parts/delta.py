"""What mixers of the delta rule share: unit keys, the call of the kernel with or without a cache, and what it costs."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.caches import ConvolvedCache
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import delta_flops, delta_step_flops, state_bytes
from zoo.mixers.parts.heads import HeadMixer
from zoo.mixers.parts.short_conv import tail_of
from zoo_kernels import delta_attention, delta_attention_step

UNIT_EPS = 1e-6


def unit(x: Tensor) -> Tensor:
    """``x / sqrt(|x|^2 + 1e-6)`` over the last dimension, in fp32 or better; dtype as x, and 0 stays 0."""
    high = x.to(torch.promote_types(x.dtype, torch.float32))
    return (high * (high.square().sum(-1, keepdim=True) + UNIT_EPS).rsqrt()).to(x.dtype)


@dataclass
class Rule:
    """Arguments of :func:`zoo_kernels.delta_attention`: with ``beta``, or with ``read`` and ``erase``."""

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor | None
    beta: Tensor | None = None
    read: Tensor | None = None
    erase: Tensor | None = None
    scale: float = 1.0

    def without_padding(self, real: Tensor | None) -> Rule:
        """With zeros where ``real (B, T)`` is False: there nothing is written or erased, and nothing decays."""
        if real is None:
            return self

        blank = {}
        for name in ("k", "log_decay", "erase", "beta"):
            if (x := getattr(self, name)) is not None:
                blank[name] = x.masked_fill(~real.view(*real.shape, *(1,) * (x.dim() - 2)), 0)
        return replace(self, **blank)


def attend_delta(rule: Rule, call: Call, products: int = 1) -> Tensor:
    """Delta attention of a call, ``(B, T, Hv, E)``; through its cache if there is one, which moves on.

    Args:
        rule: of T tokens, or of ``products`` steps for each of them, of which the last is read.
        call: of the mixer.
        products: steps of each token.
    """
    if call.cache is None:
        y, _ = delta_attention(**vars(rule), documents=_repeated(call.documents, products))
        return y[:, products - 1 :: products]
    cache, steps = call.cache, rule.q.shape[1]
    if steps == products and call.lengths is None and not torch.is_grad_enabled():  # in place, and without a gradient
        cache.advance(1, None)
        for i in range(products):
            step: dict[str, Any] = {name: x[:, i] if isinstance(x, Tensor) else x for name, x in vars(rule).items()}
            y = delta_attention_step(state=cache.state, **step)
        return y[:, None]
    rule = rule.without_padding(_repeated(call.real(), products))
    y, state = delta_attention(**vars(rule), initial_state=cache.state, return_state=True)
    cache.replace(state)
    cache.advance(steps // products, call.lengths)
    return y[:, products - 1 :: products]


def _repeated(x: Tensor | None, times: int) -> Tensor | None:
    return x if x is None or times == 1 else x.repeat_interleave(times, 1)


def checked_value_heads(heads: int, value_heads: int | None) -> int:
    """``value_heads``, by default ``heads``: ValueError unless they are a multiple of those."""
    if value_heads is None:
        return heads
    if value_heads % heads:
        raise ValueError(f"value_heads={value_heads}: expected a multiple of heads={heads}, whose keys they share.")
    return value_heads


class DeltaMixer(HeadMixer):
    """A mixer by the delta rule, with a state ``(D, E)`` per value head; a subclass says what is read and erased.

    Queries, keys and values go through a short convolution and SiLU. Keys, and queries, then have unit length, without
    which repeated tokens let the state grow without bound (Yang et al. 2024, arXiv:2406.06484).
    """

    products = 1  # steps of the rule that a token takes
    general = False  # whether reads and erases are given by themselves
    by_channel = False  # whether each channel of a key decays by itself

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """One call of the kernel."""
        if self.conv is None:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        return attend_delta(self.rule(q, k, v, call), call, self.products)

    @abstractmethod
    def rule(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Rule:
        """Makes the rule of queries and keys ``(B, T, H, D)`` and values ``(B, T, Hv, E)``."""

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ConvolvedCache:
        """The state, in fp32 unless ``dtype`` is wider, and the last inputs of the convolution."""
        shape = (batch_size, self.out_heads, self.head_dim, self.value_dim)
        return ConvolvedCache(shape, tail_of(self.conv), device, dtype)

    def own_parameters(self) -> tuple[int, int]:
        """All that the frame has not: matrices, and the rest."""
        frame = {"query", "key", "value", "conv", "norm", "gate", "out"}
        own = [module for name, module in self.named_children() if name not in frame]
        matrices = sum(m.weight.numel() for part in own for m in part.modules() if isinstance(m, nn.Linear))
        rest = sum(p.numel() for part in own for p in part.parameters()) - matrices
        return matrices, rest + sum(p.numel() for _, p in self.named_parameters(recurse=False))

    def mixing_flops(self, context: int) -> float:
        """The lower half of each chunk's products, its triangular system, and the state read, erased and written."""
        steps = self.products * context
        sizes = self.out_heads, self.head_dim, self.value_dim
        return self.products * delta_flops(*sizes, steps, general=self.general, by_channel=self.by_channel)

    def step_flops(self, context: int) -> float:
        """The state read twice and written, for each product."""
        return self.products * delta_step_flops(self.out_heads, self.head_dim, self.value_dim, self.general)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """The state and the convolution's inputs, whatever the context."""
        tail = math.prod(tail_of(self.conv)) * dtype.itemsize
        return state_bytes(self.out_heads, self.head_dim, self.value_dim, dtype) + tail
