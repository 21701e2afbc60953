"""Random feature attention (RFA, Peng et al. 2021, arXiv:2103.02143).

    phi(x) = m^(-1/2) [sin(W x / tau), cos(W x / tau)],   q, k of unit length, W = (random matrix) * sigma,
    o_t = phi(q_t) S_t / (phi(q_t) . z_t),   with  phi(q) . phi(k) ~ exp(-|sigma * (q - k)|^2 / (2 tau^2)),
    none   S_t = S_{t-1} + phi(k_t) v_t^T,                       z_t alike
    gate   S_t = g_t S_{t-1} + (1 - g_t) phi(k_t) v_t^T,         z_t alike,   g_t = sigmoid(w . x_t + b)

On the unit sphere the Gaussian kernel is that of softmax attention, exp(q . k / tau^2), but for a factor that cancels.
sigma is learned per head and dimension. No maximum is needed. Products of features can be negative, and the normalizer
with them: its sign is kept and its absolute value bounded below, so that the first token gets exactly its value.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.norms import rms_norm
from zoo.mixers.parts.options import HeadDim, RopeTheta, ValueDim
from zoo.mixers.parts.random_features import RandomProjection
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register

DECAYS = ("none", "gate")


class ForgetGate(nn.Module):
    """Forget gate ``g = sigmoid(W x + b)``, one number per token and head.

    b starts such that a zero input is remembered for about 8 to 512 tokens, geometrically spread over the heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, heads, bias=False)
        place = (torch.arange(heads, dtype=torch.float64) + 0.5) / heads
        self.bias = nn.Parameter((8.0 * 64**place - 1).log().float())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ``(B, T, C)`` to ``log g`` and ``1 - g``, both ``(B, T, H)`` in fp32 or better."""
        wide = torch.promote_types(x.dtype, torch.float32)
        logit = self.projection(x).to(wide) + self.bias.to(wide)
        return F.logsigmoid(logit), torch.sigmoid(-logit)


@register("rfa")
class RandomFeatureAttention(StateMixer):
    """Softmax attention approximated by random Fourier features, with an optional forget gate (RFA).

    Args:
        features: rows m of W per head: twice as many numbers, of which the Triton kernel takes up to 256.
        tau: temperature. Below about 0.8 the noise of the features, (2 m)^(-1/2), exceeds the smaller weights, which
            then turn negative.
        decay: ``none`` or ``gate``.
        redraw: training steps between draws of W; 0 or None for never. Evaluation does not redraw.
        seed: seed of W, with the layer and the number of the draw.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
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
        features: int = 64,
        tau: float = 1.0,
        decay: str = "none",
        redraw: int | None = 1000,
        seed: int = 0,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        rope_theta: RopeTheta = 10000.0,
    ) -> None:
        super().__init__(width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, rope_theta=rope_theta)
        if decay not in DECAYS:
            raise ValueError(f"decay={decay!r}: expected one of {', '.join(DECAYS)}.")
        if not tau > 0:
            raise ValueError(f"tau={tau}: expected a temperature above 0.")
        self.features, self.tau = features, tau
        self.projection = RandomProjection(heads, features, self.head_dim, layer, seed, redraw)
        self.sigma = nn.Parameter(torch.ones(heads, 1, self.head_dim))  # not a matrix: it is no projection
        self.forget = ForgetGate(width, heads) if decay == "gate" else None

    @property
    def key_width(self) -> int:
        """Width of queries and keys after the feature map: a sine and a cosine per random feature."""
        return 2 * self.features

    def start_step(self, step: int) -> None:
        """Redraws the features every ``redraw`` steps."""
        self.projection.start_step(step)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        q, k, log_decay = self._phi(q), self._phi(k), None
        if self.forget is not None:
            log_decay, write = self.forget(call.x)
            k = k * write[..., None]
        return attend_linear(q.to(v.dtype), k.to(v.dtype), v, log_decay, call, normalize=True)

    def _phi(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        unit = rms_norm(x, None) * self.head_dim**-0.5
        angle = self.projection(unit * (self.sigma[:, 0].to(x.dtype) / self.tau))
        return torch.cat([angle.sin(), angle.cos()], -1) * self.features**-0.5

    def mixing_flops(self, context: int) -> float:
        return super().mixing_flops(context) + self._feature_flops()

    def step_flops(self, context: int) -> float:
        return super().step_flops(context) + self._feature_flops()

    def own_parameters(self) -> tuple[int, int]:
        gate = 0 if self.forget is None else self.heads
        return gate * self.width, self.sigma.numel() + gate

    def _feature_flops(self) -> int:
        return 2 * 2 * self.heads * self.head_dim * self.features
