"""Exact attention over blocks of queries in plain PyTorch (after FlashAttention-2, Dao 2023, arXiv:2307.08691).

Each block of queries reads only the range of keys that its rule can reach, and the backward pass recomputes the weights
from the log-sum-exp, so memory is linear in T. Query heads that share a key head are folded into the query rows:
keys are never repeated.

Letters: G key heads, R query heads per key head, c queries of a block, s keys of its range.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import without_autocast
from kernels.softmax.mask import KeyRule

QUERY_BLOCK = 256


def _fold(x: Tensor, groups: int, span: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """``(B, T, G*R, X) -> (B, G, R*c, X)`` for the queries of a span."""
    batch, _, heads, width = x.shape
    part = x[:, slice(*span)].to(dtype).reshape(batch, -1, groups, heads // groups, width)
    return part.permute(0, 2, 3, 1, 4).reshape(batch, groups, -1, width)


def _unfold(x: Tensor, heads: int) -> Tensor:
    """Inverse of :func:`_fold`: ``(B, G, R*c, X) -> (B, c, G*R, X)``."""
    batch, groups, rows, width = x.shape
    part = x.reshape(batch, groups, heads // groups, rows // (heads // groups), width)
    return part.permute(0, 3, 1, 2, 4).reshape(batch, -1, heads, width)


def _keys(x: Tensor, span: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return x[:, slice(*span)].to(dtype).transpose(1, 2)


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + QUERY_BLOCK, length)) for start in range(0, length, QUERY_BLOCK)]


def _scores(query: Tensor, key: Tensor, rule: KeyRule, spans: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
    allowed = rule.allowed(*spans, query.device)
    scores = query @ key.mT
    batch, groups, rows, keys = scores.shape
    count = spans[0][1] - spans[0][0]
    shaped = scores.view(batch, groups, rows // count, count, keys)
    shaped.masked_fill_(~allowed[:, :, None], -torch.inf)
    return scores


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rule: KeyRule, scale: float) -> tuple[Tensor, Tensor]:
        groups, heads = k.shape[2], q.shape[2]
        dtype = torch.promote_types(q.dtype, torch.float32)
        output = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype, device=q.device)
        lse = torch.full(q.shape[:3], -torch.inf, dtype=dtype, device=q.device)
        for span in _blocks(q.shape[1]):
            keys = rule.key_range(*span)
            if keys[0] == keys[1]:
                continue
            scores = _scores(_fold(q, groups, span, dtype) * scale, _keys(k, keys, dtype), rule, (span, keys))
            block_lse = scores.logsumexp(-1, keepdim=True)
            weights = scores.sub_(block_lse.clamp(min=torch.finfo(dtype).min)).exp_()
            output[:, slice(*span)] = _unfold(weights @ _keys(v, keys, dtype), heads).to(q.dtype)
            lse[:, slice(*span)] = _unfold(block_lse, heads)[..., 0]
        ctx.save_for_backward(q, k, v, rule.documents, output, lse)
        ctx.rule, ctx.scale = rule, scale
        return output, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    @without_autocast
    def backward(ctx: Any, grad_output: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, _, output, lse = ctx.saved_tensors
        groups, heads = k.shape[2], q.shape[2]
        dtype = lse.dtype
        grad_q = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        grad_k, grad_v = (torch.zeros(x.transpose(1, 2).shape, dtype=dtype, device=x.device) for x in (k, v))
        inner = (grad_output.to(dtype) * output).sum(-1) - grad_lse
        for span in _blocks(q.shape[1]):
            keys = ctx.rule.key_range(*span)
            if keys[0] == keys[1]:
                continue
            query, grad = _fold(q, groups, span, dtype) * ctx.scale, _fold(grad_output, groups, span, dtype)
            key, value = _keys(k, keys, dtype), _keys(v, keys, dtype)
            block_lse = _fold(lse[..., None], groups, span, dtype).clamp(min=torch.finfo(dtype).min)
            weights = _scores(query, key, ctx.rule, (span, keys)).sub_(block_lse).exp_()
            grad_v[:, :, slice(*keys)] += weights.mT @ grad
            grad_scores = (grad @ value.mT).sub_(_fold(inner[..., None], groups, span, dtype)).mul_(weights)
            grad_k[:, :, slice(*keys)] += grad_scores.mT @ query
            grad_q[:, slice(*span)] = _unfold((grad_scores @ key).mul_(ctx.scale), heads).to(q.dtype)
        return grad_q, grad_k.transpose(1, 2).to(k.dtype), grad_v.transpose(1, 2).to(v.dtype), None, None


def blocked_softmax_attention(q: Tensor, k: Tensor, v: Tensor, rule: KeyRule, scale: float) -> tuple[Tensor, Tensor]:
    """Output ``(B, Tq, H, E)`` and log-sum-exp ``(B, Tq, H)``; rows without a key give 0 and -inf."""
    return _Blocked.apply(q, k, v, rule, scale)


def dense_causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Plain causal attention for Tq == Tk through PyTorch's fused kernel."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped).transpose(1, 2)
