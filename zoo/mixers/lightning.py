"""Lightning attention (TransNormerLLM, Qin et al. 2023, arXiv:2307.14995; Lightning Attention-2, arXiv:2401.04658).

    S_t = lambda_h S_{t-1} + k_t v_t^T,   o_t = q_t S_t,   y_t = W_o (W_u x_t * norm(o_t)),
    q, k = SiLU(W x), v = W x; no normalizer: the norm over all heads takes its place.

MiniMax-01 (2025, arXiv:2501.08313) has SiLU on v too, a sigmoid gate, a norm with a weight and no LRPE.

lambda_h = exp(-slope) is fixed per head and layer; two conventions exist and are not interchangeable, and a third
option starts at the first of them:
    transnormer   slope = ALiBi slope of the head * (1 - l / (L - 1) + 1e-5)        head 0 forgets fastest
    paper         slope = (8 h / H) * (1 - l / L)                                   head 0 never forgets
    learned       slope = that of transnormer * e^r, r learned per head, 0 at first
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.norms import checked_norm
from zoo.mixers.parts.options import Gate, HeadDim, OutputNorm, ValueDim
from zoo.mixers.parts.positions import LinearizedRelativeEncoding
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register

DECAYS = ("transnormer", "paper", "learned")
LRPE = ("first", "all", "none")


def alibi_slopes(heads: int, device: torch.device | str | None = None) -> Tensor:
    """ALiBi slopes ``(H,)`` fp32 (Press et al. 2021, arXiv:2108.12409): 2^(-8(h+1)/H), interleaved for other H."""
    base = 2 ** (heads.bit_length() - 1)
    h = torch.arange(heads, dtype=torch.float32, device=device)
    return torch.where(h < base, 2 ** (-8 * (h + 1) / base), 2 ** (-4 * (2 * (h - base) + 1) / base))


def lightning_slopes(
    decay: str, heads: int, layer: int, depth: int, device: torch.device | str | None = None
) -> Tensor:
    """Decay rates ``(H,)`` fp32, >= 0, of layer ``layer`` of ``depth``, computed on each call to escape casts."""
    if decay == "paper":
        return torch.arange(heads, dtype=torch.float32, device=device) * (8 / heads) * (1 - layer / depth)
    return alibi_slopes(heads, device) * (1 - layer / max(depth - 1, 1) + 1e-5)


@register("lightning")
class LightningAttention(StateMixer):
    """Lightning attention: linear attention with a fixed decay per head, and a norm in place of a normalizer.

    Args:
        decay: convention of the decay rates, ``transnormer`` or ``paper``, or ``learned``.
        algorithm: algorithm of the kernel: ``auto``, ``parallel``, ``chunk`` or ``scan``; all give the same result.
        lrpe: layers with LRPE-d positions: ``first``, ``all`` or ``none``.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        norm: norm over all heads of the output: ``srms`` (no weight) or ``rms``.
        gate: output gate: ``linear`` (TransNormerLLM), ``sigmoid`` (MiniMax-01), ``silu`` or ``none``.
        activate_values: SiLU on the values too, as MiniMax-01 has it.

    Raises:
        ValueError: on values outside these.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        decay: str = "transnormer",
        algorithm: str = "auto",
        lrpe: str = "first",
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        norm: OutputNorm = "srms",
        gate: Gate = "linear",
        activate_values: bool = False,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, norm=checked_norm(norm), gate=gate
        )
        if decay not in DECAYS:
            raise ValueError(f"decay={decay!r}: expected one of {', '.join(DECAYS)}.")
        if lrpe not in LRPE:
            raise ValueError(f"lrpe={lrpe!r}: expected one of {', '.join(LRPE)}.")
        self.decay, self.algorithm, self.activate_values = decay, algorithm, activate_values
        encoded = lrpe == "all" or (lrpe == "first" and layer == 0)
        self.lrpe = LinearizedRelativeEncoding(heads, self.head_dim) if encoded else None
        self.log_factor = nn.Parameter(torch.zeros(heads)) if decay == "learned" else None

    @property
    def key_width(self) -> int:
        """Width of keys in the kernel: ``head_dim``, or twice that with LRPE."""
        return self.head_dim * (2 if self.lrpe is not None else 1)

    def log_decay(self, device: torch.device | str | None = None) -> Tensor:
        """Log decay of each head, ``(H,)``, <= 0, in fp32 or better whatever the dtype of the parameters."""
        slopes = lightning_slopes(self.decay, self.heads, self.layer, self.depth, device)
        if self.log_factor is None:
            return -slopes
        return -slopes * self.log_factor.to(torch.promote_types(self.log_factor.dtype, slopes.dtype)).exp()

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        q, k, v = F.silu(q), F.silu(k), F.silu(v) if self.activate_values else v
        if self.lrpe is not None:
            table = self.lrpe(call.positions)
            q, k = self.lrpe.encode(q, table), self.lrpe.encode(k, table)
        return attend_linear(q, k, v, self.log_decay(q.device), call, algorithm=self.algorithm)

    def own_parameters(self) -> tuple[int, int]:
        encoding = 0 if self.lrpe is None else self.heads * self.head_dim
        return 0, encoding + (0 if self.log_factor is None else self.heads)
