"""Calls that between them launch every Triton kernel of linear attention with every flag, for compiling them ahead."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from zoo_kernels.linear.api import linear_attention, linear_attention_step
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
    of_one_head,
    uniform,
)

LONG = 600  # tokens: two segments


def _whole(
    name: str,
    *,
    decay: int = 0,
    learned: bool = False,
    documents: bool = False,
    state: bool = False,
    main: bool = False,
    length: int = SHORT,
    **options: Any,
) -> Call:
    """``decay``: dimensions of log_decay, 0 for none, 1 per head, 3 per token; ``learned``: it has a gradient."""

    def inputs(size: Size) -> Inputs:
        batch, tokens, heads, width = size.batch, size.length, size.heads, size.width
        shape = {0: (), 1: (heads,), 3: (batch, tokens, heads)}[decay]
        made: Inputs = {
            x: normal(size, batch, tokens, heads, width, seed=seed, scale=width**-0.25) for seed, x in enumerate("qkv")
        }
        if options.get("normalize"):
            made |= {x: made[x].abs() for x in "qk"}
        made["log_decay"] = -uniform(size, *shape) / 16 if decay else None
        made["documents"] = documents_of(size) if documents else None
        made["initial_state"] = None
        if state:
            made["initial_state"] = normal(size, batch, heads, width, width, seed=3).float()
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        names = ("q", "k", "v", "initial_state", *(["log_decay"] if learned else []))
        given = followed(given, names)
        o, last = linear_attention(**given, return_state=state, backend=backend, **options)
        return differentiated(given, names, {"output": o, "state": last} if isinstance(last, Tensor) else {"output": o})

    return Call(name, inputs, run, main, length)


def _step(name: str, decay: int, main: bool = False) -> Call:
    """As :func:`_whole`, for one token; a decay per token has 2 dimensions."""

    def inputs(size: Size) -> Inputs:
        batch, heads, width = size.batch, size.heads, size.width
        shape = {0: (), 1: (heads,), 2: (batch, heads)}[decay]
        made: Inputs = {x: normal(size, batch, heads, width, seed=seed) for seed, x in enumerate("qkv")}
        made["log_decay"] = -uniform(size, *shape) if decay else None
        made["state"] = normal(size, batch, heads, width, width, seed=3).float()
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        given = {**given, "state": given["state"].clone()}
        return {"output": linear_attention_step(**given, backend=backend), "state": given["state"]}

    return Call(name, inputs, run, main)


CALLS = (
    _whole("decay", decay=1, main=True),
    _whole("everything", decay=3, learned=True, documents=True, state=True, main=True, length=LONG),
    _whole("parallel", decay=1, algorithm="parallel", main=True),
    _whole("parallel everything", decay=3, documents=True, state=True, algorithm="parallel", main=True),
    _step("step", 1, main=True),
    _whole("plain"),
    _whole("token decay", decay=3, learned=True),
    _whole("documents", decay=1, documents=True, length=LONG),
    _whole("normalize", decay=1, normalize=True, scale=2.0),
    _whole("scan", decay=1, algorithm="scan"),
    _step("step, token decay", 2),
    _step("step, plain", 0),
    of_one_head(_whole("decay", decay=1, main=True)),
    of_one_head(_step("step", 1, main=True)),
)
