"""Public functions of softmax attention: they check their arguments and dispatch to a backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo_kernels.backend import without_autocast
from zoo_kernels.checks import check_arrays, check_count, check_devices, check_integers, check_number
from zoo_kernels.launch import whole_vectors
from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.arguments import SoftmaxArguments, SoftmaxToken
from zoo_kernels.softmax.cpu.forms import choose_form
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
        q: queries ``(B, Tq, H, D)``.
        k: keys ``(B, Tk, G, D)``; query head h reads key head ``h // (H // G)``.
        v: values ``(B, Tk, G, E)``.
        layout: visible pairs of blocks, instead of a window and sink tokens; blocks that are not visible cost nothing.
        window: number of keys that a query may read, its own included; None for all, 0 for none.
        sink_tokens: number of first tokens of each document that stay visible beside the window.
        sink_logits: ``(H,)`` learned logits that take weight and contribute no value; -inf for none.
        block_bias: ``(B | 1, H | 1, blocks, blocks)``, added to the scores of the pairs of blocks of a layout.
        scale: factor of the scores, ``D ** -0.5`` by default; of any sign and at most 1e30 in size. Scores may be as
            large as a quarter of the largest fp32 number.
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
    _check_layout(q, k, layout, window, sink_tokens, block_bias)
    missing, others = _missing(q, documents, block_bias), (block_bias, sink_logits)
    chosen = softmax_forward.enter(backend, q, k, v, others=others, missing=missing)
    call = SoftmaxArguments(q, k, v, documents, block_bias, [], 0, window, sink_tokens, scale, chosen)
    output, lse = softmax_forward(_with_layout(call, layout))
    output = output if output.shape[-1] == v.shape[-1] else output[..., : v.shape[-1]]
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
    """Attention of one query per row over its key-value cache, for decoding. It has no gradient.

    Args:
        q: query ``(B, H, D)``.
        k_cache: keys ``(B, capacity, G, D)``.
        v_cache: values ``(B, capacity, G, E)``.
        lengths: ``(B,)`` tokens seen in each row, the query's own included; without a ring they lie at the front. Slots
            behind them may hold anything, also NaN.
        window: number of keys that the query may read, its own included; None for all.
        sink_tokens: number of first tokens that stay visible beside the window.
        sink_logits: ``(H,)`` learned logits that take weight and contribute no value.
        scale: factor of the scores, ``D ** -0.5`` by default.
        ring: the cache is a ring buffer: the sink tokens, and behind them the latest tokens; see
            :func:`zoo_kernels.softmax.ring_slots`.
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
    others, missing = (lengths, sink_logits), _too_many(q)
    chosen = softmax_step.enter(backend, q, k_cache, v_cache, others=others, missing=missing)
    q, scale = _positive(q, scale)
    output, lse = softmax_step(SoftmaxToken(q, k_cache, v_cache, lengths, window, sink_tokens, ring, scale, chosen))
    if sink_logits is not None:
        output, lse = _with_sink_logits(output, lse, sink_logits)
    output = output.to(q.dtype)
    return (output, lse) if return_lse else output


def explain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    layout: BlockLayout | None = None,
    window: int | None = None,
    sink_tokens: int = 0,
    block_bias: Tensor | None = None,
    documents: Tensor | None = None,
    backend: str = "auto",
) -> str:
    """Says in one line which backend and form :func:`softmax_attention` takes for these arguments, and why.

    Nothing is computed. The arguments are those of :func:`softmax_attention` that matter for the choice, and are
    checked in the same way; the forms of the PyTorch backend are listed in
    :func:`zoo_kernels.softmax.cpu.forms.choose_form`.
    """
    _check(q, k, v, window, sink_tokens, documents)
    _check_layout(q, k, layout, window, sink_tokens, block_bias)
    choice = softmax_forward.choice(backend, q, k, v, missing=_missing(q, documents, block_bias))
    told = f"backend={choice.backend} ({choice.reason or 'asked for'})"
    if choice.backend != "torch":
        return told
    call = SoftmaxArguments(q, k, v, documents, block_bias, [], 0, window, sink_tokens, 1.0, "torch")
    form = choose_form(_with_layout(call, layout))
    return f"{told}, form={form.name} ({form.reason})"


def _with_layout(x: SoftmaxArguments, layout: BlockLayout | None) -> SoftmaxArguments:
    """The arguments as the ops take them: the layout as tensors, and what the forms of the backend want besides."""
    packed = layout is not None and x.documents is not None and x.backend != "reference"
    if packed and layout is not None and x.documents is not None:
        layout = layout.packed(x.documents)
        x = x._replace(documents=None if x.block_bias is None else x.documents)
    if layout is not None:
        x = x._replace(layout=layout.tensors(), block=layout.block)
    if x.backend == "reference":
        return x
    q, scale = _positive(x.q, x.scale)
    x = x._replace(q=q, scale=scale)
    return x if x.backend != "triton" else x._replace(q=whole_vectors(q), k=whole_vectors(x.k), v=whole_vectors(x.v))


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


def _missing(q: Tensor, documents: Tensor | None, block_bias: Tensor | None) -> str | None:
    """What the Triton form does not have of a call."""
    biased = block_bias is not None and documents is not None
    return "block_bias over packed documents" if biased else _too_many(q)


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
