"""Linear attention with a data-dependent decay: state space duality and simple gated linear attention.

    S_t = exp(g_t) S_{t-1} + d_t k_t v_t^T,   o_t = q_t S_t,   y_t = W_o (SiLU(W_g x_t) * norm(o_t)),
    q, k, v = SiLU(W x);   g_t and d_t are one number per head, of two kinds:
    mamba2    d_t = softplus(W_d x_t + b),   g_t = -A_h d_t     the step d_t scales the input, A_h > 0 is learned
    sigmoid   d_t = 1,   g_t = log sigmoid(W_d x_t + b) / 16

Mamba-2: Dao and Gu 2024 (arXiv:2405.21060), with keys and queries (its B and C) of each head, and without its short
convolution and skip. The scalar decay through a sigmoid: Yang et al. 2023 (arXiv:2312.06635).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.decays import TOKEN_DECAYS
from zoo.mixers.parts.norms import checked_norm
from zoo.mixers.parts.options import Gate, HeadDim, OutputNorm, ValueDim
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register


@register("ssd")
class StateSpaceDual(StateMixer):
    """Linear attention with a data-dependent decay per token and head.

    Args:
        decay: ``mamba2`` (step size and rate) or ``sigmoid`` (simple gated linear attention).
        algorithm: algorithm of the kernel: ``auto``, ``parallel``, ``chunk`` or ``scan``; all give the same result.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        norm: norm over all heads of the output: ``rms`` or ``srms`` (no weight).
        gate: output gate: ``silu`` (Mamba-2), ``linear``, ``sigmoid`` or ``none``.

    Raises:
        ValueError: on values outside these.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        decay: str = "mamba2",
        algorithm: str = "auto",
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        norm: OutputNorm = "rms",
        gate: Gate = "silu",
    ) -> None:
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, norm=checked_norm(norm), gate=gate
        )
        if decay not in TOKEN_DECAYS:
            raise ValueError(f"decay={decay!r}: expected one of {', '.join(TOKEN_DECAYS)}.")
        self.decay = TOKEN_DECAYS[decay](width, heads)
        self.algorithm = algorithm

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        q, k, v = F.silu(q), F.silu(k), F.silu(v)
        log_decay, step = self.decay(call.x)
        if step is not None:
            k = (k * step[..., None]).to(v.dtype)
        return attend_linear(q, k, v, log_decay, call, algorithm=self.algorithm)

    def own_parameters(self) -> tuple[int, int]:
        matrix = self.width * self.heads
        return matrix, sum(p.numel() for p in self.decay.parameters()) - matrix
