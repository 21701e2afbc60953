"""Choice of the PyTorch form that computes softmax attention, by the table of :func:`choose_form` alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from zoo_kernels.softmax.arguments import SoftmaxArguments
from zoo_kernels.softmax.cpu import blocked, fused, sparse, strip_plan, strips, tiles
from zoo_kernels.softmax.cpu.strip_plan import StripPlan

SHORTEST = 2048  # tokens from which on strips pay
Arrays = tuple[Tensor, ...]  # q, k, v, output and log-sum-exp


class Form(NamedTuple):
    """The form that was chosen for a call.

    Attributes:
        name: as in the table of :func:`choose_form`.
        reason: why it was chosen, and what ruled out the forms above it in the table.
        forward: computes output and log-sum-exp.
        backward: computes the gradients of q, k and v from arrays, the gradients of the output and of the log-sum-exp
            (or None), and a tensor that the gradient of the bias is added to (or None).
    """

    name: str
    reason: str
    forward: Callable[[], tuple[Tensor, Tensor]]
    backward: Callable[[Arrays, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor, Tensor]]


def choose_form(x: SoftmaxArguments, *, lse_gradient: bool = False) -> Form:
    """Choose the form of a call: the first of this table that serves it.

    ======== ================================================= =====================================================
    form     what it does                                      when
    ======== ================================================= =====================================================
    strips   fused attention over overlapping views of keys    CPU, fp32, keys and values of one width, as many
                                                               queries as keys, 2048 or more; a window up to a
                                                               quarter of them, without documents, or one layout for
                                                               all rows that has a band; no bias
    lists    tiles of gathered blocks                          a layout
    fused    one call of PyTorch's fused attention             CPU, no fp64, keys and values of one width, as many
                                                               queries as keys, no documents, no window
    windows  tiles of consecutive blocks and the keys before   a window that is, with sinks, below a third of the keys
    ranges   tiles of one block of queries and all its keys    all else
    ======== ================================================= =====================================================

    The backward pass asks again with the same arguments, since only tensors reach it: where the gradient of the
    log-sum-exp could not be absorbed by the output (``lse_gradient``), strips and fused do not serve.
    """
    no_strips, plan = _strips(x, lse_gradient)
    if plan is not None:
        seen = "a layout with a band" if x.layout else f"a window of {x.window} of {x.k.shape[1]} keys"
        forward = partial(strips.forward, x.q, x.k, x.v, plan, x.scale)
        return Form("strips", seen, forward, lambda arrays, grad, *_: strips.backward(arrays, grad, plan, x.scale))
    if x.layout:
        return _tiled("lists", f"a layout; no strips: {no_strips}", x, partial(_cut_lists, x))
    no_fused = _not_fused(x, lse_gradient)
    if no_fused is None:
        forward = partial(fused.forward, x.q, x.k, x.v, x.scale)
        reason = "all keys up to the query"
        return Form("fused", reason, forward, lambda arrays, grad, *_: fused.backward(arrays, grad, x.scale))
    if x.window is not None and 3 * (x.window + x.sink_tokens) < x.k.shape[1]:
        reason = f"a window of {x.window} of {x.k.shape[1]} keys; no strips: {no_strips}"
        return _tiled("windows", reason, x, lambda place: blocked.windows(x.q, x.k, x.rule))
    return _tiled("ranges", f"not fused: {no_fused}", x, lambda place: blocked.ranges(x.q, x.k, x.rule))


def _tiled(
    name: str, reason: str, x: SoftmaxArguments, cut: Callable[[Tensor | None], tuple[tiles.Grid, tiles.Tiles]]
) -> Form:
    """A form of tiles; ``cut`` makes them, with a place for the gradient of the bias."""

    def backward(
        arrays: Arrays, grad: Tensor, grad_lse: Tensor | None, place: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return tiles.differentiate(arrays, grad, grad_lse, *cut(place), x.scale, place is not None)

    return Form(name, reason, lambda: tiles.attend(x.q, x.k, x.v, *cut(None), x.scale), backward)


def _cut_lists(x: SoftmaxArguments, place: Tensor | None) -> tuple[tiles.Grid, tiles.Tiles]:
    lists = x.lists
    assert lists is not None
    return sparse.plan(x.q, x.k, lists, x.block_bias, x.documents, place)


def _alike(x: SoftmaxArguments) -> str | None:
    """What strips and the fused form refuse alike."""
    if x.q.device.type != "cpu":
        return f"tensors on {x.q.device.type}"
    if x.q.shape[-1] != x.v.shape[-1]:
        return f"keys {x.k.shape[-1]} and values {x.v.shape[-1]} wide"
    if x.q.shape[1] != x.k.shape[1]:
        return f"{x.q.shape[1]} queries of {x.k.shape[1]} keys"
    return None


def _not_fused(x: SoftmaxArguments, lse_gradient: bool) -> str | None:
    """Why the fused form does not serve."""
    if refused := _alike(x):
        return refused
    if x.q.dtype not in fused.DTYPES:
        return f"{x.q.dtype}"
    if lse_gradient:
        return "a gradient of the log-sum-exp"
    if x.documents is not None:
        return "packed documents"
    return f"a window of {x.window} keys" if x.window is not None and x.window < x.k.shape[1] else None


def _strips(x: SoftmaxArguments, lse_gradient: bool) -> tuple[str | None, StripPlan | None]:
    """Why strips do not serve, or their plan."""
    refused = _no_strips(x, lse_gradient)
    if refused is not None:
        return refused, None
    lists = x.lists
    plan = strip_plan.of_window(x.k, x.rule) if lists is None else strip_plan.of_layout(x.k, lists)
    return ("the layout has no band" if plan is None else None), plan


def _no_strips(x: SoftmaxArguments, lse_gradient: bool) -> str | None:
    length = x.k.shape[1]
    if refused := _alike(x):
        return refused
    if not fused.fuses(x.q, x.v):
        return f"{x.q.dtype}"
    if x.block_bias is not None or lse_gradient:
        return "a bias" if x.block_bias is not None else "a gradient of the log-sum-exp"
    if length < SHORTEST:
        return f"{length} tokens are fewer than {SHORTEST}"
    if any(array.stride(-1) != 1 for array in (x.q, x.k, x.v)):
        return "numbers of a head are not side by side"
    if x.layout:
        return None if x.layout[1].shape[0] == 1 else "lists of each batch row"
    if x.window is None or x.documents is not None:
        return "no window" if x.window is None else "packed documents"
    return None if 0 < x.window <= length // 4 else f"they take windows of 1 to {length // 4}"
