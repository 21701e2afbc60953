"""Kimi Delta Attention: the gated delta rule with a decay for each channel (Kimi Team 2025, arXiv:2510.26692).

    S_t = (I - beta_t k_t k_t^T) Diag(exp g_t) S_{t-1} + beta_t k_t v_t^T,   o_t = q_t S_t / sqrt(D),
    y_t = W_o (norm(o_t) * sigmoid(W_g x_t)),   q, k = unit(SiLU(conv(W x))),   v = SiLU(conv(W x)),
    beta_t = beta_max sigmoid(W_b x_t)

W_g and the projection to g have the rank of a head. Of the decay two kinds are published, between which a checkpoint
cannot be moved, see :class:`zoo.mixers.parts.channel_decays.ChannelDecay`. Published: heads of 128, a convolution of 4.
"""

from __future__ import annotations

from torch import Tensor

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.channel_decays import ChannelDecay
from zoo.mixers.parts.delta import DeltaMixer, Rule, checked_value_heads, unit
from zoo.mixers.parts.delta_gates import WriteStrength
from zoo.mixers.parts.heads import share_of_width
from zoo.mixers.parts.options import BetaMax, ChannelDecays, Conv, Gate, HeadDim, NormEps, ValueDim, ValueHeads
from zoo.mixers.registry import register


@register("kda")
class KimiDeltaAttention(DeltaMixer):
    """The delta rule with a decay per channel.

    Args:
        value_heads: heads of values and of the output, a multiple of ``heads``; None for as many.
        decay: ``softplus`` (Kimi Linear) or ``bounded`` (above -5, as later checkpoints have it).
        beta_max: largest part of a key's value that is replaced: 1, or 2 for negative eigenvalues.
        head_dim: numbers D of each query and key; None for width / heads.
        value_dim: numbers E of each value; None for ``head_dim``.
        conv: tokens of the short convolution of queries, keys and values; 0 for none.
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
        value_heads: ValueHeads = None,
        decay: ChannelDecays = "softplus",
        beta_max: BetaMax = 1.0,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        conv: Conv = 4,
        gate: Gate = "sigmoid",
        norm_eps: NormEps = 1e-5,
    ) -> None:
        of_values = checked_value_heads(heads, value_heads)
        head_dim = share_of_width(width, heads) if head_dim is None else head_dim
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, value_heads=of_values, gate=gate,
            gate_rank=head_dim, norm="rms", norm_heads=True, norm_eps=norm_eps, conv=conv,
        )  # fmt: skip
        self.groups = of_values // heads
        self.decay = ChannelDecay(width, heads, head_dim, head_dim, decay)
        self.beta = WriteStrength(width, of_values, beta_max)

    def rule(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Rule:
        """The delta rule; value heads that share a key share its decay."""
        log_decay = self.decay(call.x)
        if self.groups > 1:
            log_decay = log_decay.repeat_interleave(self.groups, 2)
        return Rule(unit(q), unit(k), v, log_decay, beta=self.beta(call.x), scale=self.head_dim**-0.5)
