"""Feature maps of linear attention, in fp32 or better: ``phi(q) . phi(k)`` takes the place of ``exp(q . k)``.

Most of them map 0 to something else: padding has to be masked after the map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CAP = 30.0  # of exponents: e^30 can be summed over any sequence, and products of two of them fit into fp32
UNREACHED = 1e-30  # below any product of features that lie in e^-30..e^30


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def elu_plus_one(x: Tensor) -> Tensor:
    """``elu(x) + 1``, without the cancellation that would make it zero at x < -17 (Katharopoulos et al. 2020)."""
    y = _wide(x)
    return torch.where(y > 0, y + 1, y.clamp(max=0).exp()).to(x.dtype)


def capped_exp(x: Tensor) -> Tensor:
    """``exp(30 tanh(x / 30))``, which cannot overflow and needs no maximum over positions, which would leak the future.

    The result has the dtype of x, but fp32 for fp16, whose range is too small.
    """
    y = (CAP * torch.tanh(_wide(x) / CAP)).exp()
    return y if x.dtype == torch.float16 else y.to(x.dtype)


def softmax_features(x: Tensor) -> Tensor:
    """Softmax over the features of a head, as a feature map."""
    return _wide(x).softmax(-1).to(x.dtype)


def taylor(x: Tensor) -> Tensor:
    """Second-order Taylor map: ``phi(q) . phi(k) = 1 + u + u^2 / 2``, ``u = q . k / sqrt(D)``, which is always >= 1/2.

    The features are ``[1, x_i / D^(1/4), x_i^2 / sqrt(2 D), x_i x_j / sqrt(D) for i < j]``: equal products are not
    stored twice (Arora et al. 2024, arXiv:2402.18668).
    """
    width, y = x.shape[-1], _wide(x) * x.shape[-1] ** -0.25
    i, j = torch.triu_indices(width, width, offset=1, device=x.device)
    parts = (torch.ones_like(y[..., :1]), y, y.square() * 0.5**0.5, y[..., i] * y[..., j])
    return torch.cat(parts, -1).to(x.dtype)


def identity(x: Tensor) -> Tensor:
    """Returns queries and keys unchanged."""
    return x


def taylor_width(width: int) -> int:
    """Number of features that :func:`taylor` makes of ``width`` numbers."""
    return 1 + width + width * (width + 1) // 2


@dataclass(frozen=True)
class FeatureMap:
    """A feature map with its properties.

    Attributes:
        apply: the map, ``(..., D)`` -> ``(..., width(D))``.
        eps: smallest absolute sum that normalized attention divides by.
        width: number of features made of D numbers.
        positive: whether products of features are positive, so that no sum can vanish.
    """

    apply: Callable[[Tensor], Tensor]
    eps: float = 1e-6
    width: Callable[[int], int] = int
    positive: bool = True


FEATURE_MAPS = {
    "identity": FeatureMap(identity, positive=False),
    "relu": FeatureMap(F.relu, positive=False),
    "elu+1": FeatureMap(elu_plus_one),
    "exp": FeatureMap(capped_exp, UNREACHED),
    "softmax": FeatureMap(softmax_features),
    "taylor": FeatureMap(taylor, width=taylor_width),
}
