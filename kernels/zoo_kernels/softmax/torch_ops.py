"""Softmax attention as custom ops: what torch.compile, autograd and FlopCounterMode see, whichever backend computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo_kernels.backend import without_autocast
from zoo_kernels.checks import refuse_forward_mode
from zoo_kernels.flops import flop_formula
from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.cpu import blocked, fused, sparse, strips, tiles
from zoo_kernels.softmax.mask import KeyRule
from zoo_kernels.softmax.step import step

_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? documents, Tensor? block_bias, Tensor[] layout"
_HOW = "int block, int window, int sink_tokens, float scale, str backend"


def _rule(q: Tensor, k: Tensor, documents: Tensor | None, window: int, sink_tokens: int) -> KeyRule:
    return KeyRule(k.shape[1] - q.shape[1], None if window < 0 else window, sink_tokens, documents)


@torch.library.custom_op(
    "attention_zoo::softmax_attention", mutates_args=(), schema=f"({_INPUTS}, {_HOW}) -> (Tensor, Tensor)"
)
def softmax_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None,
    block_bias: Tensor | None,
    layout: list[Tensor],
    block: int,
    window: int,
    sink_tokens: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output ``(B, Tq, H, E)`` in the dtype of q and log-sum-exp ``(B, Tq, H)`` in fp32 or better.

    Args:
        documents: as in :func:`zoo_kernels.softmax_attention`; with a layout, packed already, only for the bias.
        layout: tensors of a BlockLayout with blocks of ``block`` tokens; empty for none.
        window: -1 for none.
        backend: ``torch`` or ``triton``.
    """
    refuse_forward_mode("softmax attention")
    if not q.numel():
        lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        return q.new_empty(*q.shape[:3], v.shape[-1]), lse
    rule = _rule(q, k, documents, window, sink_tokens)
    lists = BlockLayout.from_tensors(block, layout) if layout else None
    if backend == "triton":
        from zoo_kernels.softmax.triton.host import triton_forward

        return triton_forward(q, k, v, rule, scale, lists, block_bias)
    parts = None if block_bias is not None else strips.plan(q, k, v, rule, lists)
    if parts is not None:
        return strips.forward(q, k, v, parts, scale)
    if lists is not None:
        return tiles.attend(q, k, v, *sparse.plan(q, k, lists, block_bias, documents), scale)
    if fused.fits(q, k, v, rule):
        return fused.forward(q, k, v, scale)
    return tiles.attend(q, k, v, *blocked.plan(q, k, rule), scale)


@softmax_forward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None,
    block_bias: Tensor | None,
    layout: list[Tensor],
    block: int,
    window: int,
    sink_tokens: int,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    refuse_forward_mode("softmax attention")
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(*q.shape[:3], v.shape[-1]), lse


@torch.library.custom_op(
    "attention_zoo::softmax_attention_backward",
    mutates_args=(),
    schema=f"({_INPUTS}, Tensor output, Tensor lse, Tensor grad_output, Tensor? grad_lse, {_HOW}, bool bias_gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
def softmax_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None,
    block_bias: Tensor | None,
    layout: list[Tensor],
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    block: int,
    window: int,
    sink_tokens: int,
    scale: float,
    backend: str,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the bias (empty unless ``bias_gradient``)."""
    refuse_forward_mode("the backward pass of softmax attention")
    none = q.new_empty(0)
    if not q.numel():
        zeros = torch.zeros_like(block_bias) if bias_gradient and block_bias is not None else none
        return q.new_empty(q.shape), torch.zeros_like(k), torch.zeros_like(v), zeros
    rule = _rule(q, k, documents, window, sink_tokens)
    lists = BlockLayout.from_tensors(block, layout) if layout else None
    arrays = q, k, v, output, lse
    if backend == "triton":
        from zoo_kernels.softmax.triton.host import triton_backward

        of_lse = torch.zeros_like(lse) if grad_lse is None else grad_lse
        grad_q, grad_k, grad_v, of_bias = triton_backward(*arrays, grad_output, of_lse, rule, scale, lists, block_bias)
        return grad_q, grad_k, grad_v, of_bias if bias_gradient and of_bias is not None else none
    if grad_lse is not None and not bias_gradient and fused.fuses(q, v):
        output, grad_lse = fused.absorb(output, grad_output, grad_lse.masked_fill(lse == -torch.inf, 0))
        arrays = q, k, v, output, lse
    parts = None if block_bias is not None or grad_lse is not None else strips.plan(q, k, v, rule, lists)
    if parts is not None:
        return *strips.backward(arrays, grad_output, parts, scale), none
    if lists is not None:
        place = None
        if bias_gradient and block_bias is not None:
            place = torch.zeros(block_bias.shape, dtype=lse.dtype, device=q.device)
        plan = sparse.plan(q, k, lists, block_bias, documents, place)
        grads = tiles.differentiate(arrays, grad_output, grad_lse, *plan, scale, bias_gradient)
        return *grads, none if place is None else place.to(q.dtype if block_bias is None else block_bias.dtype)
    if grad_lse is None and fused.fits(q, k, v, rule):
        return *fused.backward(arrays, grad_output, scale), none
    return *tiles.differentiate(arrays, grad_output, grad_lse, *blocked.plan(q, k, rule), scale), none


@softmax_backward.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None,
    block_bias: Tensor | None,
    layout: list[Tensor],
    output: Tensor,
    lse: Tensor,
    grad_output: Tensor,
    grad_lse: Tensor | None,
    block: int,
    window: int,
    sink_tokens: int,
    scale: float,
    backend: str,
    bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    refuse_forward_mode("the backward pass of softmax attention")
    grads = [x.new_empty(x.shape) for x in (q, k, v)]
    of_bias = q.new_empty(0)
    if bias_gradient and block_bias is not None:
        of_bias = block_bias.new_empty(block_bias.shape)
    return grads[0], grads[1], grads[2], of_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, documents, block_bias, layout, *how = inputs
    ctx.how, ctx.lists = how, len(layout)
    ctx.save_for_backward(q, k, v, documents, block_bias, *output, *layout)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    q, k, v, documents, block_bias, output, lse, *layout = ctx.saved_tensors
    wanted = block_bias is not None and ctx.needs_input_grad[4]
    grads: tuple[Tensor | None, ...] = (None, None, None, None)
    if grad_output is not None or grad_lse is not None:
        grad_output = torch.zeros_like(output) if grad_output is None else grad_output
        saved = q, k, v, documents, block_bias, layout, output, lse
        grads = without_autocast(softmax_backward)(*saved, grad_output, grad_lse, *ctx.how, wanted)
    return *grads[:3], None, grads[3] if wanted else None, [None] * ctx.lists, None, None, None, None, None


softmax_forward.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("attention_zoo::softmax_attention_step", mutates_args=())
def softmax_step(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    window: int,
    sink_tokens: int,
    ring: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Output ``(B, H, E)`` and log-sum-exp ``(B, H)`` of one query per row; ``window`` is -1 for none."""
    refuse_forward_mode("a step of softmax attention")
    reach = None if window < 0 else window
    if not q.numel():
        lse = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
        return q.new_empty(*q.shape[:2], v_cache.shape[-1]), lse
    if backend == "triton":
        from zoo_kernels.softmax.triton.host import triton_step

        return triton_step(q, k_cache, v_cache, lengths, window=reach, sink_tokens=sink_tokens, ring=ring, scale=scale)
    return step(q, k_cache, v_cache, lengths, reach, sink_tokens, ring, scale)


@softmax_step.register_fake
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    window: int,
    sink_tokens: int,
    ring: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    refuse_forward_mode("a step of softmax attention")
    lse = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    return q.new_empty(*q.shape[:2], v_cache.shape[-1]), lse


def _pairs(q: Any, k: Any, layout: list[Any], block: int, window: int, sink_tokens: int) -> int:
    """Pairs of query and key of all heads: those that the rule shows, or all of the listed blocks."""
    batch, queries, heads, _ = q
    if layout:
        batches, lists, _ = layout[1]
        return layout[2][0] * block**2 * (batch // max(batches, 1)) * (heads // max(lists, 1))
    reach = k[1] if window < 0 else min(window + sink_tokens, k[1])

    def before(length: int) -> int:
        short = min(length, reach)
        return short * (short + 1) // 2 + (length - short) * reach

    return batch * heads * (before(k[1]) - before(k[1] - queries))


@flop_formula(torch.ops.attention_zoo.softmax_attention)
def _forward_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None) -> int:
    """Two FLOPs per multiplication and addition of the two matrix products."""
    _, _, layout, block, window, sink_tokens, *_ = rest
    return 2 * _pairs(q, k, layout, block, window, sink_tokens) * (q[-1] + v[-1])


@flop_formula(torch.ops.attention_zoo.softmax_attention_backward)
def _backward_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None) -> int:
    _, _, layout, _, _, _, _, block, window, sink_tokens, *_ = rest
    return 2 * _pairs(q, k, layout, block, window, sink_tokens) * (3 * q[-1] + 2 * v[-1])


@flop_formula(torch.ops.attention_zoo.softmax_attention_step)
def _step_flops(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None) -> int:
    """Of a full cache."""
    _, window, sink_tokens, *_ = rest
    keys = k[1] if window < 0 else min(window + sink_tokens, k[1])
    return 2 * q[0] * q[1] * keys * (q[-1] + v[-1])
