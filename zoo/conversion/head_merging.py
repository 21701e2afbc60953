"""Fewer key and value heads for trained softmax attention: plain linear algebra on the weights of one layer.

Key (or value) heads are taken in groups of neighbors, as query heads read them. Each group keeps one shared head, from
which head i is rebuilt by a D x D factor: W_i ~ B_i W. Keys: q . B_i k = (B_i^T q) . k, so that factors go into the
query projection; values: W_o B_i v, so that they go into the output projection. Nothing is added at inference.

    mean   W = the mean of the heads, B_i = 1 (Ainslie et al. 2023, arXiv:2305.13245)
    first  W = the first head, B_i = 1
    svd    the W and B_i that minimize sum_i |W_i - B_i W|^2: the leading singular vectors of the stacked heads

A factor must commute with what stands between the projection and the product. Rotated key dimensions keep their place
only under one complex number per frequency (singular vectors of rank 1 over the complex numbers); values that a gate
multiplies, only under one number per channel; the rest under any matrix. RMS-normed keys admit none.

With the second moments C = E[x x^T] of the layer's inputs, errors are those of the keys and values themselves,
E |W_i x - B_i W x|^2 = tr (W_i - B_i W) C (W_i - B_i W)^T, and not of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Method = Literal["mean", "first", "svd"]  # how heads become one
METHODS: tuple[Method, ...] = get_args(Method)
Target = Literal["gqa", "mqa"]  # what softmax layers become
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Merged:
    """Key or value heads that share projections.

    Attributes:
        shared: ``(G, D, C)`` projection of each group, fp64.
        factors: ``(K, D, D)``: head i is about ``factors[i] @ shared[i // (K // G)]``.
    """

    shared: Tensor
    factors: Tensor

    def heads(self) -> Tensor:
        """Returns the heads ``(K, D, C)`` that the shared projections reconstruct."""
        return self.factors @ self.shared.repeat_interleave(len(self.factors) // len(self.shared), 0)


@dataclass(frozen=True)
class HeadErrors:
    """Relative errors of a layer's conversion, root mean square over its heads.

    Attributes:
        keys: error of the reconstructed key heads, which the methods minimize.
        values: error of the reconstructed value heads, which the methods minimize.
        scores: error of W_q^T W_k per head, the products of queries and keys at the same position; None for normed
            keys.
        outputs: error of W_o W_v per head.
    """

    keys: float
    values: float
    scores: float | None
    outputs: float


@dataclass(frozen=True)
class Layout:
    """Properties of a softmax mixer that decide how its heads may be merged.

    Attributes:
        heads: number of query heads H.
        kv_heads: number of key heads K.
        rotated: leading dimensions of a key that are rotated in adjacent pairs.
        normed: whether keys are RMS-normalized.
        gated: whether values are multiplied by a gate.
    """

    heads: int
    kv_heads: int
    rotated: int = 0
    normed: bool = False
    gated: bool = False


def merge_heads(
    weight: Tensor,
    groups: int,
    method: str,
    *,
    rotated: int = 0,
    channelwise: bool = False,
    covariance: Tensor | None = None,
) -> Merged:
    """Merges the heads of a projection into ``groups`` shared ones.

    Args:
        weight: ``(K, D, C)`` projections of K heads.
        groups: number of shared heads, a divisor of K.
        method: ``mean``, ``first`` or ``svd``.
        rotated: leading dimensions that are rotated in adjacent pairs.
        channelwise: factors of the other dimensions are diagonal.
        covariance: ``(C, C)`` second moments of the inputs; None for the plain norm of the weights.

    Raises:
        ValueError: if K is not a multiple of groups, or on an unknown method.
    """
    count, width = weight.shape[:2]
    if groups < 1 or count % groups:
        raise ValueError(f"{count} heads cannot be merged into {groups} groups of equal size.")
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}.")
    heads = weight.double().unflatten(0, (groups, -1))  # (G, r, D, C)
    if method == "svd" and groups < count:
        shared, factors = _leading(heads, rotated, channelwise, _root(covariance))
        return Merged(shared, factors.flatten(0, 1))
    eye = torch.eye(width, dtype=heads.dtype, device=heads.device).expand(count, -1, -1)
    return Merged(heads.mean(1) if method == "mean" else heads[:, 0], eye)


def _root(covariance: Tensor | None) -> Tensor | None:
    """A matrix L with L L^T = covariance, of any rank."""
    if covariance is None:
        return None
    values, vectors = torch.linalg.eigh(covariance.double())
    return vectors * values.clamp(min=0).sqrt()


def _leading(heads: Tensor, rotated: int, channelwise: bool, root: Tensor | None) -> tuple[Tensor, Tensor]:
    """Shared heads ``(G, D, C)`` and factors ``(G, r, D, D)`` of ``(G, r, D, C)``, part by part."""
    shared, factors = torch.empty_like(heads[:, 0]), heads.new_zeros(*heads.shape[:3], heads.shape[2])
    if rotated:
        x, y = slice(0, rotated, 2), slice(1, rotated, 2)
        pairs = torch.complex(heads[:, :, x], heads[:, :, y])
        number, head = _factor(pairs.transpose(1, 2)[..., None, :], root)  # (G, D/2, r, 1, 1), (G, D/2, 1, C)
        number, head = number[..., 0, 0].transpose(1, 2), head[..., 0, :]
        shared[:, x], shared[:, y] = head.real, head.imag
        for row, column, part in ((x, x, number.real), (y, y, number.real), (x, y, -number.imag), (y, x, number.imag)):
            factors[..., row, column] = torch.diag_embed(part)
    rest = heads[:, :, rotated:]
    if channelwise:
        number, head = _factor(rest.transpose(1, 2)[..., None, :], root)
        shared[:, rotated:] = head[..., 0, :]
        factors[..., rotated:, rotated:] = torch.diag_embed(number[..., 0, 0].transpose(1, 2))
    elif rest.shape[2]:
        factors[..., rotated:, rotated:], shared[:, rotated:] = _factor(rest, root)
    return shared, factors


def _factor(heads: Tensor, root: Tensor | None) -> tuple[Tensor, Tensor]:
    """Factors ``(..., r, m, m)`` and a shared head ``(..., m, C)`` nearest to ``(..., r, m, C)``, real or complex.

    The factors' squares add to r, and their mean is Hermitian: equal heads have the identity as factors.
    """
    count, width = heads.shape[-3:-1]
    stacked = heads.flatten(-3, -2)
    vectors = torch.linalg.svd(stacked if root is None else stacked @ root.to(heads.dtype), full_matrices=False)[0]
    factors = vectors[..., :width].unflatten(-2, (count, width)) * count**0.5
    left, _, right = torch.linalg.svd(factors.mean(-3))
    factors = factors @ (left @ right).mH[..., None, :, :]
    return factors, (factors.mH @ heads).mean(-3)


def relative_error(exact: Tensor, other: Tensor, covariance: Tensor | None = None) -> float:
    """Relative error ``|exact - other| / |exact|`` in the Frobenius norm.

    With ``covariance`` the norm is that of the inputs' second moments ``(C, C)``.
    """

    def square(x: Tensor) -> Tensor:
        return (x * (x if covariance is None else x @ covariance.double())).sum().clamp(min=0)

    whole = square(exact.double())
    return float((square(exact.double() - other.double()) / whole).sqrt()) if whole > 0 else 0.0


def share_heads(
    weights: Mapping[str, Tensor],
    layout: Layout,
    kv_heads: int,
    method: str,
    covariance: Tensor | None = None,
) -> tuple[dict[str, Tensor], HeadErrors]:
    """Converts the weights of a layer to ``kv_heads`` key heads.

    Args:
        weights: weights of a mixer by name, with ``query.weight (H D, C)``, ``key.weight (K D, C)``, ``value.weight (K
            E, C)`` and ``out.weight (C, H E)``; others are passed on. If kv_heads is K, all are passed on unchanged.
        layout: properties of the layer.
        kv_heads: number of key heads.
        method: ``mean``, ``first`` or ``svd``.
        covariance: ``(C, C)`` second moments of the layer's inputs; None for the plain norm of the weights.

    Returns:
        The new weights, and their errors.

    Raises:
        ValueError: as in :func:`merge_heads`, and for the reason of :func:`refusal`.
    """
    if kv_heads == layout.kv_heads:
        return dict(weights), HeadErrors(0.0, 0.0, None if layout.normed else 0.0, 0.0)
    key, value = merge_layer(weights, layout, kv_heads, method, covariance)
    repeat = layout.heads // layout.kv_heads
    query = weights["query.weight"].double().unflatten(0, (layout.heads, -1))
    out = weights["out.weight"].double().unflatten(1, (layout.heads, -1)).transpose(0, 1)
    new_query = key.factors.repeat_interleave(repeat, 0).mT @ query
    new_out = out @ value.factors.repeat_interleave(repeat, 0)
    found = {
        "query.weight": new_query.flatten(0, 1),
        "key.weight": key.shared.flatten(0, 1),
        "value.weight": value.shared.flatten(0, 1),
        "out.weight": new_out.transpose(0, 1).flatten(1),
    }
    old_key, old_value = (weights[f"{name}.weight"].unflatten(0, (layout.kv_heads, -1)) for name in ("key", "value"))

    def product(left: Tensor, right: Tensor) -> Tensor:
        return left @ right.double().repeat_interleave(layout.heads // len(right), 0)

    old_scores, new_scores = product(query.mT, old_key), product(new_query.mT, key.shared)
    if (root := _root(covariance)) is not None:  # both sides of a score are inputs
        old_scores, new_scores = root.mT @ old_scores, root.mT @ new_scores
    errors = HeadErrors(
        keys=relative_error(old_key, key.heads(), covariance),
        values=relative_error(old_value, value.heads(), covariance),
        scores=None if layout.normed else relative_error(old_scores, new_scores, covariance),
        outputs=relative_error(product(out, old_value), product(new_out, value.shared), covariance),
    )
    return {**weights, **{name: x.to(weights[name].dtype) for name, x in found.items()}}, errors


def refusal(method: str, layout: Layout) -> str | None:
    """Returns why a method cannot convert a layer; None if it can."""
    if method == "svd" and layout.normed:
        return (
            "method=svd cannot convert attention with qk_norm=true: the norm stands between the key projection and the "
            "product with the query, so that no factor can move to the query. Use method=mean or method=first."
        )
    return None


def merge_layer(
    weights: Mapping[str, Tensor], layout: Layout, kv_heads: int, method: str, covariance: Tensor | None = None
) -> tuple[Merged, Merged]:
    """Merges the keys and the values of a layer; arguments and errors are those of :func:`share_heads`."""
    if reason := refusal(method, layout):
        raise ValueError(reason)
    key, value = (weights[f"{name}.weight"].unflatten(0, (layout.kv_heads, -1)) for name in ("key", "value"))
    return (
        merge_heads(key, kv_heads, method, rotated=layout.rotated, covariance=covariance),
        merge_heads(value, kv_heads, method, channelwise=layout.gated, covariance=covariance),
    )
