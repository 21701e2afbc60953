"""Gated DeltaNet-2: erasing and writing gated apart, channel by channel (Hatamizadeh et al. 2026, arXiv:2605.22791).

    S_t = (I - k_t (b_t * k_t)^T) Diag(exp g_t) S_{t-1} + k_t (w_t * v_t)^T,   o_t = q_t S_t / sqrt(D),
    y_t = W_o (norm(o_t) * sigmoid(W_g x_t)),   q, k = unit(SiLU(conv(W x))),   v = SiLU(conv(W x)),
    b_t = beta_max sigmoid(W_b x_t),   w_t = sigmoid(W_w x_t)

With b and w the same number of a head it is Kimi Delta Attention, whose decay and whose gate of low rank it has; the
public layer adds a bias to that gate. Published: heads of 128, a convolution of 4.
"""

from __future__ import annotations

from torch import Tensor

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.channel_decays import ChannelDecay
from zoo.mixers.parts.delta import DeltaMixer, Rule, unit
from zoo.mixers.parts.delta_gates import WriteStrength
from zoo.mixers.parts.heads import share_of_width
from zoo.mixers.parts.options import BetaMax, ChannelDecays, Conv, Gate, HeadDim, NormEps, ValueDim
from zoo.mixers.registry import register


@register("gdn2")
class GatedDeltaNet2(DeltaMixer):
    """The delta rule with a gate for each channel that is erased and one for each that is written.

    Args:
        decay: ``softplus`` or ``bounded``, as of ``kda``.
        beta_max: largest part of what a channel reads that is erased: 1, or 2 for negative eigenvalues.
        head_dim: numbers D of each query and key; None for width / heads.
        value_dim: numbers E of each value; None for ``head_dim``.
        conv: tokens of the short convolution of queries, keys and values; 0 for none.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        norm_eps: number that is added to the mean square in the norm of the output.

    Raises:
        ValueError: on values outside these.
    """

    general = by_channel = True

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        decay: ChannelDecays = "softplus",
        beta_max: BetaMax = 1.0,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        conv: Conv = 4,
        gate: Gate = "sigmoid",
        norm_eps: NormEps = 1e-5,
    ) -> None:
        head_dim = share_of_width(width, heads) if head_dim is None else head_dim
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, gate=gate, gate_rank=head_dim,
            norm="rms", norm_heads=True, norm_eps=norm_eps, conv=conv,
        )  # fmt: skip
        self.decay = ChannelDecay(width, heads, head_dim, head_dim, decay)
        self.erased = WriteStrength(width, heads * head_dim, beta_max)
        self.written = WriteStrength(width, heads * self.value_dim, 1.0)

    def rule(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Rule:
        """Reads at the gated key, erases at the key, writes the gated value."""
        k = unit(k)
        read, written = (gate(call.x).unflatten(-1, (self.heads, -1)) for gate in (self.erased, self.written))
        read, v = (read * k).to(k.dtype), (written * v).to(v.dtype)
        return Rule(unit(q), k, v, self.decay(call.x), read=read, erase=k, scale=self.head_dim**-0.5)
