"""Calls that between them launch every Triton kernel of linear attention with every flag, for compiling them ahead."""

from __future__ import annotations

from typing import Any

import torch

from zoo_kernels.linear.api import NormalizedState, linear_attention, linear_attention_step
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
    strided,
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
    strength: float = 0.0,
    thin: bool = False,
    **options: Any,
) -> Call:
    """A call over whole sequences.

    Args:
        name: name of the call.
        main: whether it launches the kernel that the table of tiles is about.
        length: tokens of the sequence.
        decay: dimensions of log_decay, 0 for none, 1 per head, 3 per token, 4 per channel.
        learned: log_decay has a gradient.
        documents: whether the call has documents.
        state: whether the call has a state before its first token.
        strength: log_decay goes down to minus this, most of it near 0; 0: down to -1/16, evenly.
        thin: the values are less wide than the keys.
        options: of the function.
    """

    def inputs(size: Size) -> Inputs:
        batch, tokens, heads, width = size.batch, size.length, size.heads, size.width
        shape = {0: (), 1: (heads,), 3: (batch, tokens, heads), 4: (batch, tokens, heads, width)}[decay]
        made: Inputs = {
            x: normal(size, batch, tokens, heads, width, seed=seed, scale=width**-0.25) for seed, x in enumerate("qkv")
        }
        if options.get("normalize"):
            made |= {x: made[x].abs() for x in "qk"}
        if thin:
            made["v"] = made["v"][..., : width // 2 + 8]
        made["log_decay"] = None
        if decay:
            drawn = uniform(size, *shape)
            made["log_decay"] = -strength * drawn**4 if strength else -drawn / 16
        made["documents"] = documents_of(size) if documents else None
        made["initial_state"] = None
        if state:
            columns = made["v"].shape[-1] + options.get("normalize", False)
            made["initial_state"] = normal(size, batch, heads, width, columns, seed=3).float()
            if options.get("normalize"):
                made["initial_state"] = made["initial_state"].abs()
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        names = ("q", "k", "v", "initial_state", *(["log_decay"] if learned else []))
        given = followed(given, names)
        start = given["initial_state"]
        if state and options.get("normalize"):
            start = NormalizedState(start[..., :-1], start[..., -1])
        how = given | {"initial_state": start, "return_state": state, "backend": backend, **options}
        o, last = linear_attention(**how)
        if isinstance(last, NormalizedState):
            last = torch.cat([last.s, last.z[..., None]], -1)
        return differentiated(given, names, {"output": o} if last is None else {"output": o, "state": last})

    return Call(name, inputs, run, main, length)


def _step(name: str, decay: int, main: bool = False) -> Call:
    """As :func:`_whole`, for one token; a decay per token has 2 dimensions, one per channel 3."""

    def inputs(size: Size) -> Inputs:
        batch, heads, width = size.batch, size.heads, size.width
        shape = {0: (), 1: (heads,), 2: (batch, heads), 3: (batch, heads, width)}[decay]
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
    _whole("channels", decay=4, learned=True, main=True),
    _whole("channels, everything", decay=4, learned=True, documents=True, state=True, main=True, length=LONG),
    _whole("plain"),
    _whole("token decay", decay=3, learned=True),
    _whole("documents", decay=1, documents=True, length=LONG),
    _whole("normalize", decay=1, normalize=True, scale=2.0),
    _whole("scan", decay=1, algorithm="scan"),
    _step("step, token decay", 2),
    _step("step, plain", 0),
    _whole("channels, documents", decay=4, documents=True),
    _whole("channels, fixed", decay=4),
    _step("step, channels", 3),
    of_one_head(_whole("decay", decay=1, main=True)),
    of_one_head(_step("step", 1, main=True)),
)

HARDER = (
    _whole("strong decay", decay=1, strength=20.0, state=True),
    _whole("strong token decay", decay=3, strength=20.0, state=True, main=True),
    _whole("strong decay, documents", decay=1, strength=20.0, state=True, documents=True),
    _whole("strong token decay, documents", decay=3, strength=20.0, state=True, documents=True),
    _whole("strong decay, learned", decay=3, strength=20.0, learned=True),
    _whole("strong channels", decay=4, strength=20.0, state=True, learned=True, main=True),
    _whole("strong channels, documents", decay=4, strength=20.0, state=True, learned=True, documents=True),
    _whole("channels, thin values", decay=4, learned=True, state=True, thin=True),
    _whole("channels, normalize", decay=4, learned=True, normalize=True, state=True, documents=True),
    strided(_whole("channels", decay=4, learned=True, state=True)),
    _whole("long", decay=1, length=4097),
    _whole("plain, state", state=True),
    *(_whole(f"{name}, state", decay=1, state=True, algorithm=name) for name in ("parallel", "chunk", "scan")),
    _whole("normalize, state", decay=1, normalize=True, state=True),
    _whole("normalize, documents", decay=1, normalize=True, documents=True, state=True),
    _whole("thin values", decay=1, state=True, thin=True),
    strided(_whole("decay", decay=1, state=True)),
)
