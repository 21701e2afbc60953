"""Softmax attention: the public functions, their checks and the dispatch to a backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo_kernels.backend import resolve_backend, without_autocast
from zoo_kernels.checks import check_arrays, check_count, check_devices, check_integers, check_number, refuse_transforms
from zoo_kernels.flops import offer_flops
from zoo_kernels.launch import whole_vectors
from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.mask import KeyRule
from zoo_kernels.softmax.reference import reference_softmax_attention
from zoo_kernels.softmax.torch_ops import softmax_forward, softmax_step

LARGEST_SCALE = 1e30  # scores are numbers of fp32


@without_autocast
def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: BlockLayout | None = None,
    window: int | None = None,
    sink_tokens: int = 0,
    sink_logits: Tensor | None = None,
    block_bias: Tensor | None = None,
    scale: float | None = None,
    documents: Tensor | None = None,
    backend: str = "auto",
    return_lse: bool = False,
) -> Any:
    """Exact causal softmax attention, aligned at the end when there are fewer queries than keys.

    Args:
        q: ``(B, Tq, H, D)``. k: ``(B, Tk, G, D)``. v: ``(B, Tk, G, E)``; query head h reads key head ``h // (H // G)``.
        layout: pairs of blocks that are read, instead of a window and sink tokens; others cost nothing.
        window: keys a query may read, its own included; None for all, 0 for none.
        sink_tokens: first tokens of each document that stay visible beside the window.
        sink_logits: ``(H,)`` learned logits that take weight and give nothing; -inf for none.
        block_bias: ``(B | 1, H | 1, blocks, blocks)`` added to the scores of a layout's pairs of blocks.
        scale: of the scores, ``D ** -0.5`` by default; any sign, and at most 1e30 in size. Scores may be as large as
            a quarter of the largest fp32.
        documents: ``(B, Tk)`` integer ids of packed documents, each contiguous; the queries are the last Tq tokens.
            Blocks of the layout and of the bias count from the start of a document. NaN and inf may reach other
            documents of their row, never another row.
        backend: ``auto``, ``triton``, ``torch`` or ``reference``.
        return_lse: also return the natural log-sum-exp of the scores, ``(B, Tq, H)`` in fp32 or better.

    Returns:
        Output ``(B, Tq, H, E)`` in the dtype of q; rows without a key are 0, and their log-sum-exp is -inf.

    Raises:
        ValueError: on shapes, types, numbers, a layout or a backend that do not fit.
        NotImplementedError: in forward mode and inside torch.func's transforms.
    """
    _check(q, k, v, window, sink_tokens, documents)
    scale = _checked_scale(q, scale, sink_logits)
    refuse_transforms("softmax attention", q, k, v, block_bias, sink_logits)
    _check_layout(q, k, layout, window, sink_tokens, block_bias)
    biased = block_bias is not None and documents is not None
    missing = "block_bias over packed documents" if biased else _too_many(q)
    chosen = resolve_backend(backend, "softmax attention", q, k, v, missing=missing)
    if chosen == "reference":
        rule = KeyRule(k.shape[1] - q.shape[1], window, sink_tokens, documents)
        wide = torch.promote_types(q.dtype, torch.float32)
        output, lse = reference_softmax_attention(q.to(wide), k.to(wide), v.to(wide), rule, scale, layout, block_bias)
    else:
        tensors, block, of_bias = [], 0, documents
        if layout is not None:
            layout = layout if documents is None else layout.packed(documents)
            tensors, block, of_bias = layout.tensors(), layout.block, documents if biased else None
        reach = -1 if window is None else window
        offer_flops()
        q, scale = _positive(q, scale)
        how = of_bias, block_bias, tensors, block, reach, sink_tokens, scale, chosen
        if chosen == "triton":
            output, lse = softmax_forward(*(whole_vectors(x) for x in (q, k, v)), *how)
            output = output if output.shape[-1] == v.shape[-1] else output[..., : v.shape[-1]]
        else:
            output, lse = softmax_forward(q, k, v, *how)
    if sink_logits is not None:
        output, lse = _with_sink_logits(output, lse, sink_logits)
    output = output.to(q.dtype)
    return (output, lse) if return_lse else output


@without_autocast
def softmax_attention_step(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    window: int | None = None,
    sink_tokens: int = 0,
    sink_logits: Tensor | None = None,
    scale: float | None = None,
    ring: bool = False,
    backend: str = "auto",
    return_lse: bool = False,
) -> Any:
    """One query per row over its cache. It has no gradient.

    Args:
        q: ``(B, H, D)``. k_cache: ``(B, capacity, G, D)``. v_cache: ``(B, capacity, G, E)``.
        lengths: ``(B,)`` tokens seen in each row, the query's own included; without a ring they lie at the front. What
            lies behind them may be anything, also NaN.
        window, sink_tokens, sink_logits, scale: as in :func:`softmax_attention`.
        ring: the cache holds the sink tokens, and behind them the latest: see :func:`zoo_kernels.softmax.ring_slots`.
        backend: ``auto``, ``triton`` or ``torch``; ``reference`` is ``torch``.
        return_lse: also return the natural log-sum-exp of the scores, ``(B, H)`` in fp32 or better.

    Returns:
        Output ``(B, H, E)`` in the dtype of q; without a key it is 0, and the log-sum-exp -inf.

    Raises:
        ValueError: on shapes, types, numbers or a backend that do not fit, or a ring that is shorter than the window.
        NotImplementedError: in forward mode and inside torch.func's transforms.
    """
    _check_step(q, k_cache, v_cache, lengths, window, sink_tokens, ring)
    scale = _checked_scale(q, scale, sink_logits)
    refuse_transforms("a step of softmax attention", q, k_cache, v_cache, lengths, sink_logits)
    chosen = resolve_backend(backend, "softmax attention", q, k_cache, v_cache, missing=_too_many(q))
    q, scale = _positive(q, scale)
    reach = -1 if window is None else window
    offer_flops()
    output, lse = softmax_step(q, k_cache, v_cache, lengths, reach, sink_tokens, ring, scale, chosen)
    if sink_logits is not None:
        output, lse = _with_sink_logits(output, lse, sink_logits)
    output = output.to(q.dtype)
    return (output, lse) if return_lse else output


def _positive(q: Tensor, scale: float) -> tuple[Tensor, float]:
    """Queries and a scale above 0 for the same scores: the fused kernels mask with -inf before they scale."""
    if scale >= torch.finfo(torch.float32).tiny:
        return q, scale
    if scale <= -torch.finfo(torch.float32).tiny:
        return -q, -scale
    return q * scale, 1.0


def _with_sink_logits(output: Tensor, lse: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of rows in which a logit takes weight and gives nothing."""
    logits = logits.to(lse.dtype).expand(lse.shape)
    empty = (lse == -torch.inf) & (logits == -torch.inf)  # whose difference would be NaN
    lse = lse.masked_fill(empty, 0)
    total = torch.logaddexp(lse, logits)
    return output * (lse - total).exp()[..., None], total.masked_fill(empty, -torch.inf)


def _too_many(q: Tensor) -> str | None:
    """What the second and third dimension of a grid of programs do not hold."""
    batch, heads = q.shape[0], q.shape[-2]
    return f"{batch} rows of {heads} heads, and it takes up to 65535 of both" if max(batch, heads) > 65535 else None


def _check(q: Tensor, k: Tensor, v: Tensor, window: int | None, sink_tokens: int, documents: Tensor | None) -> None:
    check_arrays(q=q, k=k, v=v)
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0]:
        raise ValueError(f"expected q (B, Tq, H, D), k (B, Tk, G, D) and v (B, Tk, G, E), got {shapes}.")
    if not q.shape[-1] or not v.shape[-1]:
        raise ValueError(f"heads of {q.shape[-1]} and values of {v.shape[-1]} numbers: expected at least 1 of each.")
    if q.shape[-1] != k.shape[-1] or not _shared(q.shape[2], k.shape[2]):
        raise ValueError(f"query heads must be a multiple of key heads, of equal width, got {shapes}.")
    if q.shape[1] > k.shape[1]:
        raise ValueError(f"{q.shape[1]} queries but only {k.shape[1]} keys: a query's own key must be among them.")
    _check_rule(window, sink_tokens)
    if documents is not None:
        check_integers("documents", documents, k.shape[:2])
        check_devices(q=q, documents=documents)


def _check_rule(window: int | None, sink_tokens: int) -> None:
    if window is not None:
        check_count("window", window)
    check_count("sink_tokens", sink_tokens)


def _shared(heads: int, groups: int) -> bool:
    """Whether each key head serves as many query heads; no heads at all are none of each."""
    return heads % groups == 0 if groups else heads == 0


def _checked_scale(q: Tensor, scale: float | None, sink_logits: Tensor | None) -> float:
    """The scale, by default that of the width; sink_logits are checked too."""
    if sink_logits is not None:
        check_arrays(sink_logits=sink_logits)
        check_devices(q=q, sink_logits=sink_logits)
        if sink_logits.shape != q.shape[-2:-1]:
            raise ValueError(f"sink_logits has shape {tuple(sink_logits.shape)}, expected ({q.shape[-2]},).")
    if scale is None:
        return float(q.shape[-1] ** -0.5)
    check_number("scale", scale)
    if abs(scale) > LARGEST_SCALE:
        raise ValueError(f"scale={scale}: expected at most {LARGEST_SCALE:g} in size.")
    return scale


def _check_layout(
    q: Tensor, k: Tensor, layout: BlockLayout | None, window: int | None, sink_tokens: int, block_bias: Tensor | None
) -> None:
    if layout is None:
        if block_bias is not None:
            raise ValueError("block_bias is added to the pairs of blocks of a layout: give one.")
        return
    if window is not None or sink_tokens:
        raise ValueError(
            f"window={window} and sink_tokens={sink_tokens} do not go with a layout, which says all that is read."
        )
    batches, heads, blocks = layout.shape
    needed = -(-k.shape[1] // layout.block)
    if batches not in (1, q.shape[0]) or heads not in (1, q.shape[2]) or blocks < needed:
        wanted = f"1 or {q.shape[0]}, 1 or {q.shape[2]}, at least {needed}"
        raise ValueError(f"the layout is of {batches} rows, {heads} heads, {blocks} blocks, expected {wanted}.")
    if block_bias is None:
        return
    check_arrays(block_bias=block_bias)
    check_devices(q=q, block_bias=block_bias)
    shape = tuple(block_bias.shape)
    fits = len(shape) == 4 and shape[0] in (1, q.shape[0]) and shape[1] in (1, q.shape[2])
    if not fits or min(shape[2:]) < needed:
        wanted = f"(1 or {q.shape[0]}, 1 or {q.shape[2]}, {needed}, {needed}) or more blocks"
        raise ValueError(f"block_bias has shape {shape}, expected {wanted}.")


def _check_step(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, window: int | None, sink_tokens: int, ring: bool
) -> None:
    check_arrays(q=q)
    check_arrays(k_cache=k_cache, v_cache=v_cache)  # of another type than q, if the cache is
    if not isinstance(lengths, Tensor):
        raise ValueError(f"lengths is a {type(lengths).__name__}, expected a torch.Tensor of integers.")
    shapes = f"{tuple(q.shape)}, {tuple(k_cache.shape)}, {tuple(v_cache.shape)}, {tuple(lengths.shape)}"
    if q.dim() != 3 or k_cache.dim() != 4 or v_cache.dim() != 4 or k_cache.shape[:3] != v_cache.shape[:3]:
        raise ValueError(f"expected q (B, H, D), caches (B, capacity, G, D or E) and lengths (B,), got {shapes}.")
    if lengths.shape != q.shape[:1] or q.shape[0] != k_cache.shape[0] or q.shape[2] != k_cache.shape[3]:
        raise ValueError(f"expected q (B, H, D), caches (B, capacity, G, D or E) and lengths (B,), got {shapes}.")
    if not q.shape[-1] or not v_cache.shape[-1]:
        raise ValueError(f"heads of {q.shape[-1]} and values of {v_cache.shape[-1]} numbers: expected at least 1.")
    check_integers("lengths", lengths, q.shape[:1])
    check_devices(q=q, k_cache=k_cache, lengths=lengths)
    if not _shared(q.shape[1], k_cache.shape[2]):
        raise ValueError(f"query heads must be a multiple of key heads, got {shapes}.")
    _check_rule(window, sink_tokens)
    room = k_cache.shape[1] - sink_tokens
    if ring and (window is None or window > room or room < 1):
        raise ValueError(
            f"a ring of {k_cache.shape[1]} slots with sink_tokens={sink_tokens} cannot serve window={window}."
        )
