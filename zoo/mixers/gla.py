"""Gated linear attention: each channel of a key forgets at a rate of its own (Yang et al. 2023, arXiv:2312.06635).

    S_t = Diag(exp g_t) S_{t-1} + k_t v_t^T,   o_t = q_t S_t / sqrt(D),   y_t = W_o (norm(o_t) * SiLU(W_r x_t)),
    g_t = log sigmoid(W_2 W_1 x_t + b) / 16

Published: four heads, keys of C / 2 and values of C in all, a gate of rank 16, no convolution and no feature map.
"""

from __future__ import annotations

from fractions import Fraction

import torch.nn.functional as F
from torch import Tensor

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.decays import wide
from zoo.mixers.parts.heads import share_of_width
from zoo.mixers.parts.low_rank import LowRank
from zoo.mixers.parts.norms import checked_norm
from zoo.mixers.parts.options import DecayRank, Gate, HeadDim, NormEps, OutputNorm, ValueDim
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register

TEMPERATURE = 16


@register("gla")
class GatedLinearAttention(StateMixer):
    """Linear attention with a decay per channel.

    Args:
        decay_rank: rank of the projection to the decay.
        head_dim: numbers D of each query and key; None for half of width / heads.
        value_dim: numbers E of each value; None for width / heads.
        norm: of each head's output: ``rms`` or ``srms`` (no weight).
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        norm_eps: number that is added to the mean square in the norm of the output.

    Raises:
        ValueError: on values outside these.
    """

    by_channel = True

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        decay_rank: DecayRank = 16,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        norm: OutputNorm = "rms",
        gate: Gate = "silu",
        norm_eps: NormEps = 1e-5,
    ) -> None:
        super().__init__(
            width, heads, depth, layer,
            head_dim=share_of_width(width, heads, Fraction(1, 2)) if head_dim is None else head_dim,
            value_dim=share_of_width(width, heads, option="value_dim") if value_dim is None else value_dim,
            norm=checked_norm(norm), norm_heads=True, norm_eps=norm_eps, gate=gate,
        )  # fmt: skip
        self.decay = LowRank(width, decay_rank, heads * self.head_dim, bias=True)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """One call of the kernel."""
        log_decay = F.logsigmoid(wide(self.decay(call.x))) / TEMPERATURE
        return attend_linear(q, k, v, log_decay.unflatten(-1, (self.heads, -1)), call, scale=self.head_dim**-0.5)

    def own_parameters(self) -> tuple[int, int]:
        """The projection to the decay, and its bias."""
        return self.decay.matrix_numbers, self.heads * self.head_dim
