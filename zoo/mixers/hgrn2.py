"""HGRN2: a gated linear recurrence whose keys are what its channels forget (Qin et al. 2024, arXiv:2404.07904).

    S_t = Diag(f_t) S_{t-1} + (1 - f_t) v_t^T,   o_t = SiLU(W_q x_t) S_t / sqrt(D),   y_t = W_o norm(o_t),
    f_t = gamma + (1 - gamma) sigmoid(W_f x_t)

gamma is a lower bound of what a channel keeps. In the first layer there is none. In the others it is a learned number
per channel that starts at layer / depth; published is a softmax over the depth that is summed up to the layer, which
grows alike and needs the parameters of all layers in each. Published: heads of 128, one norm over all heads, no gate.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.decays import wide
from zoo.mixers.parts.norms import checked_norm
from zoo.mixers.parts.options import Gate, HeadDim, NormEps, OutputNorm, ValueDim
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register

LEAST = 1e-38  # of what is kept, whose logarithm is taken


@register("hgrn2")
class HGRN2(StateMixer):
    """Linear attention with a decay per channel and keys of 1 less it.

    Args:
        head_dim: numbers D of each query and key; None for width / heads.
        value_dim: numbers E of each value; None for ``head_dim``.
        norm: over all heads of the output: ``rms`` or ``srms`` (no weight).
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        norm_eps: number that is added to the mean square in the norm of the output.

    Attributes:
        lower_bound: logit of gamma of each channel, or None in the first layer.

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
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        norm: OutputNorm = "rms",
        gate: Gate = "none",
        norm_eps: NormEps = 1e-5,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, norm=checked_norm(norm),
            norm_eps=norm_eps, gate=gate,
        )  # fmt: skip
        start = torch.full((heads * self.head_dim,), layer / depth)
        self.lower_bound = nn.Parameter(start.logit()) if layer else None

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """One call of the kernel; the projection of the keys is that of f."""
        chosen = wide(k)
        if self.lower_bound is None:
            log_decay, k = F.logsigmoid(chosen), torch.sigmoid(-chosen)
        else:
            gamma = wide(self.lower_bound).sigmoid().view(self.heads, -1)
            k = (1 - gamma) * torch.sigmoid(-chosen)
            log_decay = (gamma + (1 - gamma) * chosen.sigmoid()).clamp(min=LEAST).log()
        return attend_linear(F.silu(q), k.to(v.dtype), v, log_decay, call, scale=self.head_dim**-0.5)

    def own_parameters(self) -> tuple[int, int]:
        """The lower bound."""
        return 0, 0 if self.lower_bound is None else self.lower_bound.numel()
