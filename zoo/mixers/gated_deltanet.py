"""Gated DeltaNet: the delta rule on a state that decays (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464).

    S_t = exp(g_t) (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,   o_t = q_t S_t / sqrt(D),
    y_t = W_o (norm(o_t) * SiLU(W_g x_t)),   q, k = unit(SiLU(conv(W x))),   v = SiLU(conv(W x)),
    beta_t = beta_max sigmoid(W_b x_t),   g_t = -A_h softplus(W_a x_t + b_h)

g and beta are one number per value head. With grouped values, several value heads share a query and a key. With n
products a token takes n such steps, each with a key, a value and a beta of its own, decays in the first and is read
after the last (DeltaProduct, Siems et al. 2025, arXiv:2502.10297, who have a beta_max of 2).

Published: keys of 0.75 C in all and values twice as wide, 6 C^2 parameters; a convolution of 4; A between 0 and 16 and
softplus(b) between 0.001 and 0.1. Olmo Hybrid has beta_max 2; Qwen3-Next twice as many value heads as key heads.
"""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.decays import StepDecay
from zoo.mixers.parts.delta import DeltaMixer, Rule, checked_value_heads, unit
from zoo.mixers.parts.delta_gates import WriteStrength
from zoo.mixers.parts.heads import share_of_width
from zoo.mixers.parts.options import BetaMax, Conv, Gate, HeadDim, NormEps, Products, ValueDim, ValueHeads
from zoo.mixers.registry import register

SLOWEST = 0.01  # of A, whose logarithm is trained


@register("gated_deltanet")
class GatedDeltaNet(DeltaMixer):
    """The gated delta rule.

    Args:
        value_heads: heads of values and of the output, a multiple of ``heads``; None for as many.
        head_dim: numbers D of each query and key; None for 0.75 width / heads.
        value_dim: numbers E of each value; None for 2 D.
        beta_max: largest part of a key's value that is replaced: 1, or 2 for negative eigenvalues.
        products: steps of the delta rule that each token takes.
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
        value_heads: ValueHeads = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        beta_max: BetaMax = 1.0,
        products: Products = 1,
        conv: Conv = 4,
        gate: Gate = "silu",
        norm_eps: NormEps = 1e-5,
    ) -> None:
        of_values = checked_value_heads(heads, value_heads)
        head_dim = share_of_width(width, heads, Fraction(3, 4)) if head_dim is None else head_dim
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=2 * head_dim if value_dim is None else value_dim,
            value_heads=of_values, writes=products, gate=gate, norm="rms", norm_heads=True, norm_eps=norm_eps,
            conv=conv,
        )  # fmt: skip
        self.products = products
        self.decay = StepDecay(width, of_values, SLOWEST)
        self.beta = WriteStrength(width, of_values * products, beta_max)

    def rule(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Rule:
        """The delta rule; with n products, that of a sequence n times as long."""
        log_decay, _ = self.decay(call.x)
        beta, scale = self.beta(call.x), self.head_dim**-0.5
        if self.products == 1:
            return Rule(unit(q), unit(k), v, log_decay, beta=beta, scale=scale)
        q, log_decay = self._among_products(unit(q), -1), self._among_products(log_decay, 0)
        k, v = (x.unflatten(2, (self.products, -1)).flatten(1, 2) for x in (unit(k), v))
        return Rule(q, k, v, log_decay, beta=beta.unflatten(2, (self.products, -1)).flatten(1, 2), scale=scale)

    def _among_products(self, x: Tensor, place: int) -> Tensor:
        """``(B, T, ...)`` -> ``(B, n T, ...)``: ``x`` at one place of each token's products, zeros at the others."""
        made = x.new_zeros(*x.shape[:2], self.products, *x.shape[2:])
        made[:, :, place] = x
        return made.flatten(1, 2)
