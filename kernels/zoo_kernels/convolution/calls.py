"""Calls that between them launch every Triton kernel of the short convolution with every flag."""

from __future__ import annotations

import torch

from zoo_kernels.convolution.api import short_convolution
from zoo_kernels.tools.calls import (
    SHORT,
    Call,
    Inputs,
    Outputs,
    Size,
    differentiated,
    documents_of,
    followed,
    normal,
)

WIDEST = 512  # channels: kernels take any number of them, and the rows of the tables are for all
FOLLOWED = ("x", "weight", "bias", "initial")


def _call(
    name: str,
    *,
    taps: int = 4,
    bias: bool = False,
    initial: bool = False,
    documents: bool = False,
    lengths: bool = False,
    sliced: bool = False,
    main: bool = False,
    length: int = SHORT,
) -> Call:
    """A call over whole sequences.

    Args:
        name: name of the call.
        taps: tokens that an output reads.
        bias: whether there is a bias.
        initial: whether there are inputs before token 0.
        documents: whether the call has documents.
        lengths: whether rows are ragged; the gradient of what lies behind is 0.
        sliced: x is a part of the columns of a wider array.
        main: whether it launches the kernels that the tables of tiles are about.
        length: tokens of the sequence.
    """

    def inputs(size: Size) -> Inputs:
        batch, tokens, channels = size.batch, size.length, min(size.width, WIDEST)
        x = normal(size, batch, tokens, 2 * channels if sliced else channels, seed=0)
        ends = torch.arange(batch, device=size.device) % 3 * (tokens // 3) + tokens // 3
        return {
            "x": x[..., channels:] if sliced else x,
            "weight": normal(size, channels, taps, seed=1, scale=taps**-0.5),
            "bias": normal(size, channels, seed=2) if bias else None,
            "initial": normal(size, batch, taps - 1, channels, seed=3) if initial else None,
            "documents": documents_of(size) if documents else None,
            "lengths": ends if lengths else None,
        }

    def run(given: Inputs, backend: str) -> Outputs:
        given = followed(given, FOLLOWED)
        y, _ = short_convolution(**given, backend=backend)
        if lengths:  # what lies behind is unspecified
            inside = torch.arange(y.shape[1], device=y.device) < given["lengths"][:, None]
            y = torch.where(inside[..., None], y, torch.zeros_like(y))
        return differentiated(given, FOLLOWED, {"output": y})

    return Call(name, inputs, run, main, length)


CALLS = (
    _call("taps", main=True),
    _call("everything", bias=True, initial=True, documents=True, lengths=True, main=True),
    _call("bias", bias=True),
    _call("carried inputs", initial=True),
    _call("documents", documents=True),
    _call("ragged", lengths=True),
)

HARDER = (
    _call("one tap", taps=1, bias=True, initial=True),
    _call("seven taps", taps=7, bias=True, initial=True, documents=True),
    _call("sliced", sliced=True, initial=True),
    _call("long", length=4097, bias=True, main=True),
)
