"""Rows gathered by index, with backward passes that gather too: nothing is added in an order that may change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Take(torch.autograd.Function):
    """``y[i] = x[index[i]]``; ``inverse (rows of x, n)`` lists the rows of y that took a row, -1 first for none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        none, columns = inverse[:, :1] < 0, inverse.clamp(min=0).unbind(1)
        total = grad.index_select(0, columns[0])
        total = sum((grad.index_select(0, column) for column in columns[1:]), total)
        return total.masked_fill(none, 0), None, None


class Mix(torch.autograd.Function):
    """``y[i] = sum_s weights[i, s] x[places[i, s]]``; ``pairs (rows of x,)`` counts (i, s), -1 for none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, places: Tensor, pairs: Tensor) -> Tensor:
        ctx.save_for_backward(x, weights, places, pairs)
        total = weights[:, :1] * x.index_select(0, places[:, 0])
        for slot in range(1, places.shape[1]):
            total = total + weights[:, slot, None] * x.index_select(0, places[:, slot])
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weights, places, pairs = ctx.saved_tensors
        at = pairs.clamp(min=0)
        of_pairs = weights.reshape(-1).index_select(0, at).masked_fill(pairs < 0, 0)
        grad_x = grad.index_select(0, at // places.shape[1]) * of_pairs[:, None]
        products = [(grad * x.index_select(0, place)).sum(-1) for place in places.unbind(1)]
        return grad_x.to(x.dtype), torch.stack(products, -1), None, None
