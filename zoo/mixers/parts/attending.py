"""Softmax attention of a call, through the cache if there is one: the cache says what to read, a kernel reads it."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from torch import Tensor

from zoo.mixers.caches import View
from zoo.mixers.parts.call import Call
from zoo_kernels import softmax_attention, softmax_attention_step


class Whole(Protocol):
    """Attention of ``q (B, Tq, H, D)`` over ``k, v (B, Tk, G, D or E)``, aligned at the end where Tq < Tk."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """``documents`` is ``(B, Tk)``; positions, blocks and strides count from the start of a document."""


class Step(Protocol):
    """Attention of one query per row, ``(B, H, D)`` -> ``(B, H, E)``; it has no gradient."""

    def __call__(self, q: Tensor, view: View) -> Tensor:
        """``view`` is of the slots of a cache."""


def attend(q: Tensor, k: Tensor, v: Tensor, call: Call, whole: Whole, step: Step) -> Tensor:
    """Attention of the queries of a call, ``(B, T, H, E)``; its keys and values are added to its cache, if it has one.

    Args:
        q: queries ``(B, T, H, D)``.
        k: keys ``(B, T, G, D)``.
        v: values ``(B, T, G, E)``.
        call: the call of the mixer.
        whole: what the mixer computes over a sequence, or for a piece over what came before and itself.
        step: the same for one token over the slots of the cache.
    """
    if call.cache is None:
        return whole(q, k, v, documents=call.documents)
    view = call.cache.append(k, v, call.lengths)
    if view.in_slots:
        return step(q[:, 0], view)[:, None]
    return whole(q, view.keys, view.values, documents=view.documents)


def attend_softmax(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    call: Call,
    *,
    window: int | None = None,
    sink_tokens: int = 0,
    sink_logits: Tensor | None = None,
) -> Tensor:
    """Calls :func:`zoo_kernels.softmax_attention`, whose options are taken, or a step of it on the slots of a cache."""

    def step(q: Tensor, view: View) -> Tensor:
        output: Tensor = softmax_attention_step(
            q, view.keys, view.values, view.lengths, window=window, sink_tokens=sink_tokens, sink_logits=sink_logits,
            ring=view.ring,
        )  # fmt: skip
        return output

    whole = partial(softmax_attention, window=window, sink_tokens=sink_tokens, sink_logits=sink_logits)
    return attend(q, k, v, call, whole, step)
