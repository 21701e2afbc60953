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

from torch import Tensor, nn

from zoo.mixers.parts.features import FEATURE_MAPS
from zoo.mixers.parts.heads import Call
from zoo.mixers.parts.positions import check_base, rotate
from zoo.mixers.parts.recurrent import StateMixer, attend_linear
from zoo.mixers.registry import register

NORMALIZERS = ("sum", "l2", "none")
FEATURES = 16  # of queries and keys before the map of taylor


@register("linear")
class LinearAttention(StateMixer):
    """Linear attention.

    Args:
        feature_map: ``elu+1``, ``identity``, ``relu``, ``exp`` (capped at e^30), ``softmax`` (over the features of a
            token) or ``taylor`` (second order). With ``identity`` weights can be negative and their sum zero.
        normalizer: ``sum``, ``l2`` (RMS norm of each head of the output, no weight) or ``none``.
        features: width of queries and keys for ``taylor``, which squares it; None for 16. The others take the head
            width.
        rope_theta: base of the rotary frequencies; None for no positions. Queries and keys are rotated before the
            feature map, so that weights stay positive; they then depend on both positions, not on the distance alone.
        gate: output gate, ``none``, ``linear``, ``sigmoid`` or ``silu``.
        algorithm: of the kernel: ``auto``, ``parallel``, ``chunk`` or ``scan``; all give the same result.

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
        features: int | None = None,
        rope_theta: float | None = 10000.0,
        gate: str = "none",
        algorithm: str = "auto",
    ) -> None:
        if feature_map not in FEATURE_MAPS:
            raise ValueError(f"feature_map={feature_map!r}: expected one of {', '.join(FEATURE_MAPS)}.")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"normalizer={normalizer!r}: expected one of {', '.join(NORMALIZERS)}.")
        check_base(rope_theta)
        small = feature_map == "taylor"
        if features is not None and not small:
            raise ValueError(
                f"features={features} with feature_map={feature_map!r}: it makes as many as a head is wide. "
                "Only taylor takes a number, leave it null."
            )
        features = FEATURES if features is None else features
        norm = "srms" if normalizer == "l2" else "none"
        super().__init__(
            width, heads, depth, layer, rope_theta=None if small else rope_theta, gate=gate, norm=norm, norm_heads=True
        )  # fmt: skip
        self.feature_map, self.normalize, self.algorithm = FEATURE_MAPS[feature_map], normalizer == "sum", algorithm
        self.features, self.theta = features if small else self.head_width, rope_theta
        self.small: nn.Linear | None = None
        if small:  # one projection takes the place of those to queries and keys, which are of the head width
            if features < 1 or (rope_theta is not None and features % 2):
                raise ValueError(
                    f"features={features}: expected at least 1, and an even number where rope_theta is given."
                )
            self.small = nn.Linear(width, 2 * heads * features, bias=False)
            for name in ("query", "key"):
                self.add_module(name, nn.Identity())

    @property
    def normalized(self) -> bool:
        """With a sum that cannot vanish: tokens that share no feature above zero with a query give it nothing."""
        return self.normalize and self.feature_map.positive

    @property
    def key_width(self) -> int:
        """What the feature map makes of queries and keys."""
        return self.feature_map.width(self.features)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """One call of the kernel."""
        if self.small is not None:
            q, k = self.small(call.x).unflatten(-1, (2, self.heads, self.features)).unbind(2)
            if self.theta is not None:
                q, k = (rotate(y, call.positions, self.theta) for y in (q, k))
        q, k = self.feature_map.apply(q), self.feature_map.apply(k)
        y = attend_linear(
            q, k, v.to(k.dtype), None, call, normalize=self.normalize, eps=self.feature_map.eps,
            algorithm=self.algorithm,
        )  # fmt: skip
        return y

    def own_parameters(self) -> tuple[int, int]:
        """The difference that narrow queries and keys make."""
        return 0 if self.small is None else 2 * self.width * (self.heads * self.features - self.width), 0
