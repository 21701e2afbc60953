"""Linear attention with a choice of feature map and normalizer.

    S_t = S_{t-1} + phi(k_t) v_t^T,   z_t = z_{t-1} + phi(k_t),
    sum    o_t = phi(q_t) S_t / (phi(q_t) . z_t)      weights of a row sum to one
    l2     o_t = phi(q_t) S_t / |phi(q_t) S_t| * sqrt(D)     the RMS norm of each head: only the direction stays
    none   o_t = phi(q_t) S_t

elu(x) + 1 and ``sum``: Katharopoulos et al. 2020 (arXiv:2006.16236); its published code adds 1e-6 to the sum, which is
kept at 1e-6 or above here. ``l2``: NormAttention of TransNormer, Qin et al. 2022 (arXiv:2210.10340). ``taylor``: Based,
Arora et al. 2024 (arXiv:2402.18668), with queries and keys of 16 numbers and 153 features.
"""

from __future__ import annotations

from torch import Tensor

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.features import FEATURE_MAPS
from zoo.mixers.parts.heads import share_of_width
from zoo.mixers.parts.options import Gate, HeadDim, RopeTheta, ValueDim
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register

NORMALIZERS = ("sum", "l2", "none")
NARROW = 16  # numbers of queries and keys before the map of taylor


@register("linear")
class LinearAttention(StateMixer):
    """Linear attention with a feature map and a normalizer.

    Args:
        feature_map: ``elu+1``, ``identity``, ``relu``, ``exp`` (capped at e^30), ``softmax`` (over the features of a
            token) or ``taylor`` (second order). With ``identity`` weights can be negative and their sum zero.
        normalizer: ``sum``, ``l2`` (RMS norm of each head of the output, no weight) or ``none``.
        head_dim: width D of the queries and keys of a head; None for 16 with ``taylor``, which squares it, and for
            ``width / heads`` otherwise.
        value_dim: width E of the values of a head; None for ``width / heads`` with ``taylor``, and for ``head_dim``
            otherwise.
        rope_theta: base of the rotary frequencies; None for no positions. Queries and keys are rotated before the
            feature map, so that weights stay positive; they then depend on both positions, not on the distance alone.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        algorithm: algorithm of the kernel: ``auto``, ``parallel``, ``chunk`` or ``scan``; all give the same result.

    Raises:
        ValueError: on values outside these, or if ``rope_theta`` is given and queries are of odd width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        feature_map: str = "elu+1",
        normalizer: str = "sum",
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        rope_theta: RopeTheta = 10000.0,
        gate: Gate = "none",
        algorithm: str = "auto",
    ) -> None:
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={feature_map!r}: expected one of {', '.join(FEATURE_MAPS)}.")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer={normalizer!r}: expected one of {', '.join(NORMALIZERS)}.")
        if feature_map == "taylor":
            value_dim = share_of_width(width, heads, option="value_dim") if value_dim is None else value_dim
            head_dim = NARROW if head_dim is None else head_dim
        norm = "srms" if normalizer == "l2" else "none"
        super().__init__(
            width, heads, depth, layer, head_dim=head_dim, value_dim=value_dim, rope_theta=rope_theta, gate=gate,
            norm=norm, norm_heads=True,
        )  # fmt: skip
        self.feature_map, self.normalize, self.algorithm = FEATURE_MAPS[feature_map], normalizer == "sum", algorithm

    @property
    def normalized(self) -> bool:
        """Whether weights sum to one: with the normalizer ``sum`` and a feature map whose sums cannot vanish."""
        return self.normalize and self.feature_map.positive

    @property
    def key_width(self) -> int:
        """Width of queries and keys after the feature map."""
        return self.feature_map.width(self.head_dim)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        q, k = self.feature_map.apply(q), self.feature_map.apply(k)
        return attend_linear(
            q, k, v.to(k.dtype), None, call, normalize=self.normalize, eps=self.feature_map.eps,
            algorithm=self.algorithm,
        )  # fmt: skip
