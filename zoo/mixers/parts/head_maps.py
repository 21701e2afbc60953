"""Learned feature maps of each head's queries and keys, for linear attention beside softmax attention.

    elu+1      elu(x) + 1: Katharopoulos et al. 2020 (arXiv:2006.16236); nothing is learned.
    taylor     phi(q) . phi(k) = 1 + u + u^2 / 2 with u = P q . R k: Arora et al. 2024 (Based, arXiv:2402.18668)
    hedgehog   sqrt(2F) softmax([P x, -P x]): Zhang et al. 2024 (arXiv:2402.04347)

P and R, of the queries and the keys of each head, start as the same identity, rotation or projection to F numbers,
scaled such that phi(q) . phi(k) begins as exp(q . k / sqrt(D)) does: with F >= D, ``taylor`` agrees with its series up
to the second order and ``hedgehog`` up to the first; with fewer features, on average over the projections. So their
products can be added to those of softmax attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zoo.mixers.parts.features import elu_plus_one, softmax_features, taylor


def paired_softmax(x: Tensor) -> Tensor:
    """Maps ``(.., F)`` to ``(.., 2F)`` whose products are ``1 + x . y / F`` to first order, and never more than 2F."""
    return (2 * x.shape[-1]) ** 0.5 * softmax_features(torch.cat([x, -x], -1))


@dataclass(frozen=True)
class _Learned:
    """``features`` is the default F for a head of width D; ``scale`` takes D and F and is the factor of P and R."""

    features: Callable[[int], int]
    scale: Callable[[int, int], float]


@dataclass(frozen=True)
class _Kind:
    """``width`` is what it makes of F numbers, ``floor`` the least that a product of two features can be."""

    apply: Callable[[Tensor], Tensor]
    width: Callable[[int], int] = int
    floor: float = 1e-6
    learned: _Learned | None = None


HEAD_MAPS: dict[str, _Kind] = {
    "elu+1": _Kind(elu_plus_one),
    "taylor": _Kind(
        taylor, lambda f: 1 + f + f * (f + 1) // 2, 0.5, _Learned(lambda d: 16, lambda d, f: (f / d) ** 0.25)
    ),
    "hedgehog": _Kind(
        paired_softmax, lambda f: 2 * f, learned=_Learned(lambda d: d, lambda d, f: f**0.5 * d**-0.25)
    ),
}  # fmt: skip


class HeadMap(nn.Module):
    """Feature map of queries and keys with parameters per head, ``(B, T, H, D)`` -> ``(B, T, H, width)``.

    Features are computed in fp32 or better.

    Args:
        name: a key of ``HEAD_MAPS``.
        heads: number of heads.
        head_width: width D of queries and keys.
        features: numbers F that each head is projected to; None for 16 (taylor) or the head width (hedgehog).

    Attributes:
        width: number of features of a head.
        flops: FLOPs for a query and a key.
        floor: lower bound of the sum over keys that attention divides by.

    Raises:
        ValueError: on a map that does not exist, or features that do not go with it.
    """

    def __init__(self, name: str, heads: int, head_width: int, features: int | None = None) -> None:
        super().__init__()
        if name not in HEAD_MAPS:
            raise ValueError(f"feature_map={name!r}: expected one of {', '.join(HEAD_MAPS)}.")
        kind = HEAD_MAPS[name]
        self.name, self.apply_to, self.floor = name, kind.apply, kind.floor
        self.query_weight: nn.Parameter | None = None
        self.key_weight: nn.Parameter | None = None
        self.scale, self.flops, count = 1.0, 0, head_width
        if kind.learned is not None:
            count = kind.learned.features(head_width) if features is None else features
            if count < 1:
                raise ValueError(f"features={count}: expected at least 1.")
            self.scale, self.flops = kind.learned.scale(head_width, count), 4 * heads * head_width * count
            weight = isometries(heads, head_width, count)
            self.query_weight, self.key_weight = nn.Parameter(weight), nn.Parameter(weight.clone())
        elif features is not None:
            raise ValueError(f"features={features} with feature_map={name!r}: it makes as many as a head is wide.")
        self.width = kind.width(count)

    def query(self, q: Tensor) -> Tensor:
        """Maps queries to features, in the dtype of q."""
        return self._features(q, self.query_weight)

    def key(self, k: Tensor) -> Tensor:
        """Maps keys to features, in the dtype of k."""
        return self._features(k, self.key_weight)

    def _features(self, x: Tensor, weight: Tensor | None) -> Tensor:
        dtype = x.dtype
        if weight is not None:
            x = torch.einsum("bthd,hdf->bthf", x, weight)
        return self.apply_to(self.scale * x.to(torch.promote_types(dtype, torch.float32))).to(dtype)

    def extra_repr(self) -> str:
        return f"{self.name}, width={self.width}"


def isometries(heads: int, width: int, features: int) -> Tensor:
    """Matrices ``(H, D, F)`` that preserve inner products, on average where F < D; the identity where F = D."""
    if features == width:
        return torch.eye(width).repeat(heads, 1, 1)
    weight = torch.empty(heads, width, features)
    for head in weight:
        nn.init.orthogonal_(head)
    return weight * max(width / features, 1) ** 0.5
