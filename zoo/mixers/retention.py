"""Retention (Sun et al. 2023, arXiv:2307.08621): linear attention with a fixed decay per head and rotary positions.

    S_t = gamma_h S_{t-1} + k_t v_t^T,   o_t = q_t S_t / sqrt(D),   y_t = W_o (SiLU(W_g x_t) * norm_h(o_t)),
    q, k = RoPE(W x);   gamma_h = 1 - 2^(-5-h), the same in every layer.

The attention of RetNet. Each head is normalized by itself, so a factor of a row, which the paper divides out of its
scores, would change nothing. Values are as wide as keys, where the paper doubles them: ``value_dim`` of twice
``head_dim``.
"""

from __future__ import annotations

from torch import Tensor

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.decays import retention_log_decay
from zoo.mixers.parts.norms import checked_norm
from zoo.mixers.parts.options import Gate, HeadDim, OutputNorm, RopeTheta, ValueDim
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register


@register("retention")
class Retention(StateMixer):
    """Linear attention with a fixed decay per head and rotary positions (RetNet).

    Args:
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        rope_theta: base of the rotary frequencies; None for no positions beside the decay.
        algorithm: algorithm of the kernel: ``auto``, ``parallel``, ``chunk`` or ``scan``; all give the same result.
        norm: norm of each head of the output: ``rms`` or ``srms`` (no weight).
        gate: output gate: ``silu`` (RetNet), ``linear``, ``sigmoid`` or ``none``.

    Raises:
        ValueError: on values outside these, or if heads are of odd width and ``rope_theta`` is given.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        rope_theta: RopeTheta = 10000.0,
        algorithm: str = "auto",
        norm: OutputNorm = "rms",
        gate: Gate = "silu",
    ) -> None:
        super().__init__(
            width,
            heads,
            depth,
            layer,
            head_dim=head_dim,
            value_dim=value_dim,
            rope_theta=rope_theta,
            norm=checked_norm(norm),
            norm_heads=True,
            gate=gate,
        )
        self.algorithm = algorithm

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        log_decay = retention_log_decay(self.heads, q.device)
        return attend_linear(q, k, v, log_decay, call, scale=self.head_dim**-0.5, algorithm=self.algorithm)
