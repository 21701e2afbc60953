"""Performer: softmax attention through positive random features (FAVOR+, Choromanski et al. 2020, arXiv:2009.14794).

    o_t = phi(q_t) S_t / (phi(q_t) . z_t),   S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t),
    exp    phi(x) = exp(W x' - |x'|^2 / 2),   x' = x / D^(1/4):   E[phi(q) . phi(k)] = features * exp(q . k / sqrt(D))
    relu   phi(x) = relu(W x') + 0.001

Exponents are stabilized by what a token may know: those of a query by their own maximum, those of a key by the maximum
M_t of the keys so far, S_t being kept in units of exp(M_t): a log-decay M_{t-1} - M_t. Both cancel in the quotient, so
no gradient passes through them. The usual maximum over all keys shows tokens the future through the normalizer's
epsilon, and one maximum per key does not cancel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.caches import Cache, MaximumCache
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.options import HeadDim, QkNorm, RopeTheta, ValueDim
from zoo.mixers.parts.random_features import RandomProjection, running_maximum
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register

FEATURE_MAPS = ("exp", "relu")
RELU_FLOOR = 1e-3
EPS = 1e-20  # only against 0 / 0: products of stabilized features can be small


@register("performer")
class Performer(StateMixer):
    """Softmax attention approximated by positive random features (FAVOR+).

    Args:
        features: number m of random features per head; the Triton kernel takes up to 256.
        feature_map: ``exp`` (the softmax kernel) or ``relu``.
        redraw: training steps between draws of the features; 0 or None for never. Evaluation does not redraw.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions, with weights that start at D^(-1/4), so
            that |x'| = 1. The variance of the estimate grows as exp(|q' + k'|^2): at weights of 1 and D = 64 no
            practical number of features is enough.
        seed: seed of the features, with the layer and the number of the draw.
        rope_theta: base of the rotary frequencies; None for no positions.

    Raises:
        ValueError: on values outside these.
    """

    normalize = True

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        features: int = 256,
        feature_map: str = "exp",
        redraw: int | None = 1000,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = True,
        seed: int = 0,
        rope_theta: RopeTheta = 10000.0,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, qk_norm=qk_norm, rope_theta=rope_theta
        )
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={feature_map!r}: expected one of {', '.join(FEATURE_MAPS)}.")
        self.features, self.stabilized = features, feature_map == "exp"
        self.projection = RandomProjection(heads, features, self.head_dim, layer, seed, redraw)
        for norm in (self.query_norm, self.key_norm):
            if norm is not None:
                nn.init.constant_(norm.weight, self.head_dim**-0.25)

    @property
    def key_width(self) -> int:
        """Width of queries and keys after the feature map: the number of random features."""
        return self.features

    def start_step(self, step: int) -> None:
        """Redraws the features every ``redraw`` steps."""
        self.projection.start_step(step)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k = (x.to(wide) * self.head_dim**-0.25 for x in (q, k))
        log_decay = None
        if self.stabilized:
            q, k, log_decay = self._exponentials(q, k, call)
        else:
            q, k = (F.relu(self.projection(x)) + RELU_FLOOR for x in (q, k))
        return attend_linear(q.to(v.dtype), k.to(v.dtype), v, log_decay, call, normalize=True, eps=EPS)

    def _exponentials(self, q: Tensor, k: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Stabilized features of queries and keys, none above 1, and the log-decay that goes with those of the keys.

        A factor of a query's own cancels, so its ``|q'|^2 / 2`` is left out.
        """
        of_q, of_k, half = self.projection(q), self.projection(k), k.square().sum(-1) / 2
        top, log_decay = running_maximum(of_k.detach().amax(-1) - half.detach(), call)
        q = (of_q - of_q.detach().amax(-1, keepdim=True)).exp()
        return q, (of_k - (half + top)[..., None]).exp(), log_decay

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Cache:
        """The state, and for ``exp`` the running maximum, in fp32 unless ``dtype`` is wider."""
        if not self.stabilized:
            return super().new_cache(batch_size, capacity, device, dtype)
        return MaximumCache((batch_size, self.heads, self.features, self.value_dim), device, dtype)

    def mixing_flops(self, context: int) -> float:
        return super().mixing_flops(context) + self._feature_flops()

    def step_flops(self, context: int) -> float:
        return super().step_flops(context) + self._feature_flops() + 2 * self.heads * self.stabilized

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        wide = torch.promote_types(dtype, torch.float32)
        return super().cache_bytes(context, dtype) + self.heads * self.stabilized * wide.itemsize

    def _feature_flops(self) -> int:
        return 2 * 2 * self.heads * self.head_dim * self.features
