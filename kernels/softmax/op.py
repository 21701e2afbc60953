"""Softmax attention: the public functions, their checks and the dispatch to a backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels.backend import resolve_backend, without_autocast
from kernels.softmax.blocked import blocked_softmax_attention, dense_causal_attention
from kernels.softmax.mask import KeyRule
from kernels.softmax.reference import reference_softmax_attention


@without_autocast
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    sinks: int = 0,
    sink_logits: Tensor | None = None,
    scale: float | None = None,
    documents: Tensor | None = None,
    backend: str = "auto",
    return_lse: bool = False,
) -> Any:
    """Exact causal softmax attention, aligned at the end when there are fewer queries than keys.

    Args:
        q: ``(B, Tq, H, D)``. k: ``(B, Tk, G, D)``. v: ``(B, Tk, G, E)``; query head h reads key head ``h // (H // G)``.
        window: keys a query may read, its own included; None for all, 0 for none.
        sinks: first tokens of each document that stay visible beside the window.
        sink_logits: ``(H,)`` learned logits that take weight and give nothing.
        scale: of the scores, ``D ** -0.5`` by default.
        documents: ``(B, Tk)`` integer ids of packed documents, each contiguous; the queries are the last Tq tokens.
        backend: ``auto``, ``torch`` or ``reference``.
        return_lse: also return the natural log-sum-exp of the scores, ``(B, Tq, H)`` in fp32 or better.

    Returns:
        Output ``(B, Tq, H, E)`` in the dtype of q; rows without a key are 0, and their log-sum-exp is -inf.

    Raises:
        ValueError: on shapes, a window or a backend that do not fit.
    """
    _check(q, k, v, window, sinks, documents)
    chosen = resolve_backend(backend, "softmax attention", q, k, v, missing="it has no kernels yet")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    rule = KeyRule(k.shape[1] - q.shape[1], window, sinks, documents)
    if chosen == "reference":
        wide = torch.promote_types(q.dtype, torch.float32)
        output, lse = reference_softmax_attention(q.to(wide), k.to(wide), v.to(wide), rule, scale)
    elif _is_plain(q, k, v, rule) and sink_logits is None and not return_lse:
        return dense_causal_attention(q, k, v, scale)
    else:
        output, lse = blocked_softmax_attention(q, k, v, rule, scale)
    if sink_logits is not None:
        total = torch.logaddexp(lse, sink_logits.to(lse.dtype))
        output = output * (lse - total).exp()[..., None]
        lse = total
    output = output.to(q.dtype)
    return (output, lse) if return_lse else output


def _is_plain(q: Tensor, k: Tensor, v: Tensor, rule: KeyRule) -> bool:
    reaches_all = rule.window is None or rule.window >= k.shape[1]
    return rule.offset == 0 and rule.documents is None and reaches_all and q.shape[1] > 0


@without_autocast
def softmax_attention_step(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    window: int | None = None,
    sinks: int = 0,
    sink_logits: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """One query per row over its cache.

    Args:
        q: ``(B, H, D)``. k_cache: ``(B, capacity, G, D)``. v_cache: ``(B, capacity, G, E)``.
        lengths: ``(B,)`` keys that are valid in each row, from the front, the query's own included.
        window, sinks, sink_logits, scale: as in :func:`softmax_attention`.

    Returns:
        Output ``(B, H, E)`` in the dtype of q.
    """
    batch, heads, width = q.shape
    groups = k_cache.shape[2]
    scale = width**-0.5 if scale is None else scale
    dtype = torch.promote_types(q.dtype, torch.float32)
    query = q.reshape(batch, groups, heads // groups, width).to(dtype) * scale
    scores = query @ k_cache.to(dtype).permute(0, 2, 3, 1)  # (B, G, R, capacity)
    j = torch.arange(k_cache.shape[1], device=q.device)[None]
    valid = j < lengths[:, None]
    if window is not None:
        valid = valid & ((j >= lengths[:, None] - window) | (j < sinks))
    scores = scores.masked_fill(~valid[:, None, None], -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    if sink_logits is not None:
        lse = torch.logaddexp(lse, sink_logits.to(dtype).view(1, groups, -1, 1))
    weights = (scores - lse.clamp(min=torch.finfo(dtype).min)).exp()
    output = weights @ v_cache.to(dtype).transpose(1, 2)
    return output.reshape(batch, heads, -1).to(q.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None, sinks: int, documents: Tensor | None) -> None:
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if q.dim() != 4 or k.dim() != 4 or k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise ValueError(f"expected q (B, Tq, H, D), k (B, Tk, G, D) and v (B, Tk, G, E), got {shapes}.")
    if q.shape[-1] != k.shape[-1] or k.shape[2] == 0 or q.shape[2] % k.shape[2]:
        raise ValueError(f"query heads must be a multiple of key heads, of equal width, got {shapes}.")
    if q.shape[1] > k.shape[1]:
        raise ValueError(f"{q.shape[1]} queries but only {k.shape[1]} keys: a query's own key must be among them.")
    if (window is not None and window < 0) or sinks < 0:
        raise ValueError(f"window={window} and sinks={sinks}: expected numbers >= 0.")
    if documents is not None and documents.shape != k.shape[:2]:
        raise ValueError(f"documents has shape {tuple(documents.shape)}, expected {tuple(k.shape[:2])}.")
