"""Comba: the gated delta rule with closed-loop control (Hu et al. 2025, arXiv:2506.02475).

    S_t = (exp(g_t) I - beta_t k_t p_t^T exp(g_t)) S_{t-1} + beta_t k_t v_t^T,   o_t = (q_t - d_h p_t) S_t / sqrt(D),
    p_t = sigmoid(c_h) k_t,   y_t = W_o (norm(o_t) * sigmoid(W_g x_t)),   q, k, v = SiLU(conv(W x)), q - d p and k of
    unit length,   beta_t = sigmoid(W_b x_t),   g_t = -A_h softplus(W_a x_t + b_h)

The state is read at a part of the key (c, 1 at first), and the output is corrected by what that part reads (d, 1 at
first; the authors suggest 0.02 for small models). Published: keys of 0.75 C in all and values twice as wide, a
convolution of 4. Here p is that part of the key of unit length; to normalize p by itself, as a public layer does,
would cancel c.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.decays import StepDecay
from zoo.mixers.parts.delta import DeltaMixer, Rule, unit
from zoo.mixers.parts.delta_gates import WriteStrength
from zoo.mixers.parts.heads import share_of_width
from zoo.mixers.parts.options import Conv, Correction, Gate, HeadDim, NormEps, ValueDim
from zoo.mixers.registry import register

SLOWEST = 0.01  # of A, whose logarithm is trained


@register("comba")
class Comba(DeltaMixer):
    """The gated delta rule that reads at a part of the key and corrects the output by it.

    Args:
        correction: initial value of d.
        head_dim: numbers D of each query and key; None for 0.75 width / heads.
        value_dim: numbers E of each value; None for 2 D.
        conv: tokens of the short convolution of queries, keys and values; 0 for none.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        norm_eps: number that is added to the mean square in the norm of the output.

    Raises:
        ValueError: on values outside these.
    """

    general = True

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        correction: Correction = 1.0,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        conv: Conv = 4,
        gate: Gate = "sigmoid",
        norm_eps: NormEps = 1e-5,
    ) -> None:
        head_dim = share_of_width(width, heads, Fraction(3, 4)) if head_dim is None else head_dim
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=2 * head_dim if value_dim is None else value_dim,
            gate=gate, norm="rms", norm_heads=True, norm_eps=norm_eps, conv=conv,
        )  # fmt: skip
        self.decay, self.beta = StepDecay(width, heads, SLOWEST), WriteStrength(width, heads, 1.0)
        self.read_part = nn.Parameter(torch.ones(heads))
        self.correction = nn.Parameter(torch.full((heads,), float(correction)))

    def rule(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Rule:
        """Reads at p, erases and writes beta times at the key."""
        part = self.read_part.sigmoid()[:, None]
        q = unit(q - self.correction[:, None] * part * k).to(v.dtype)
        k, (log_decay, _), beta = unit(k), self.decay(call.x), self.beta(call.x)[..., None]
        read, erase, v = ((x * factor).to(v.dtype) for x, factor in ((k, part), (k, beta), (v, beta)))
        return Rule(q, k, v, log_decay, read=read, erase=erase, scale=self.head_dim**-0.5)
