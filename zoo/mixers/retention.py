"""Retention (RetNet, Sun et al. 2023, arXiv:2307.08621).

    S_t = gamma_h S_{t-1} + k_t v_t^T,   o_t = q_t S_t / sqrt(D),   y_t = W_o (SiLU(W_g x_t) * norm_h(o_t)),
    q, k = RoPE(W x);   gamma_h = 1 - 2^(-5-h), the same in every layer.

Each head is normed by itself, so a factor of a row, which the paper divides out of its scores, would change nothing.
Values are as wide as keys, where the paper doubles them.
"""

from __future__ import annotations

from torch import Tensor

from zoo.mixers.parts.decays import retention_log_decay
from zoo.mixers.parts.heads import Call
from zoo.mixers.parts.norms import checked_norm
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register


@register("retention")
class Retention(StateMixer):
    """Retention.

    Args:
        rope_theta: base of the rotary frequencies; None for no positions beside the decay.
        algorithm: of the kernel: ``auto``, ``parallel``, ``chunk`` or ``scan``; all give the same result.
        norm: of each head of the output: ``rms`` or ``srms`` (no weight).
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
        rope_theta: float | None = 10000.0,
        algorithm: str = "auto",
        norm: str = "rms",
        gate: str = "silu",
    ) -> None:
        super().__init__(
            width, heads, depth, layer, rope_theta=rope_theta, norm=checked_norm(norm), norm_heads=True, gate=gate
        )
        self.algorithm = algorithm

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """One call of the kernel."""
        log_decay = retention_log_decay(self.heads, q.device)
        return attend_linear(q, k, v, log_decay, call, scale=self.head_width**-0.5, algorithm=self.algorithm)
