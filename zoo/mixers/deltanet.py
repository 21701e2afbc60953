"""DeltaNet: a state that forgets what a key held before it takes the new value (Yang et al. 2024, arXiv:2406.06484).

    S_t = (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,   o_t = q_t S_t / sqrt(D),   y_t = W_o norm(o_t),
    q, k = unit(SiLU(conv(W x))),   v = SiLU(conv(W x)),   beta_t = beta_max sigmoid(W_b x_t)

The rule is that of Schlag et al. 2021 (arXiv:2102.11174). With beta_max 2 a state's eigenvalues reach -1, as keeping
count modulo 2 needs (Grazzi et al. 2024, arXiv:2411.12537). Published: heads of 128, a convolution of 4, no gate.
"""

from __future__ import annotations

from torch import Tensor

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.delta import DeltaMixer, Rule, unit
from zoo.mixers.parts.delta_gates import WriteStrength
from zoo.mixers.parts.options import BetaMax, Conv, Gate, HeadDim, NormEps, ValueDim
from zoo.mixers.registry import register


@register("deltanet")
class DeltaNet(DeltaMixer):
    """Linear attention by the delta rule, without decay.

    Args:
        beta_max: largest part of a key's value that is replaced: 1, or 2 for negative eigenvalues.
        head_dim: numbers D of each query and key; None for width / heads.
        value_dim: numbers E of each value; None for ``head_dim``.
        conv: tokens of the short convolution of queries, keys and values; 0 for none.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        norm_eps: number that is added to the mean square in the norm of the output.

    Raises:
        ValueError: on values outside these.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        beta_max: BetaMax = 1.0,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        conv: Conv = 4,
        gate: Gate = "none",
        norm_eps: NormEps = 1e-5,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, gate=gate, norm="rms", norm_heads=True,
            norm_eps=norm_eps, conv=conv,
        )  # fmt: skip
        self.beta = WriteStrength(width, heads, beta_max)

    def rule(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Rule:
        """The delta rule."""
        return Rule(unit(q), unit(k), v, None, beta=self.beta(call.x), scale=self.head_dim**-0.5)
