"""Calls that between them launch every Triton kernel of delta attention with every flag, for compiling them ahead."""

from __future__ import annotations

import torch.nn.functional as F

from zoo_kernels.delta.api import delta_attention, delta_attention_step
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

ERASED = {"plain": (), "beta": ("beta",), "general": ("read", "erase")}
NONE, HEAD, TOKEN, CHANNEL = range(4)  # what has a decay of its own


def _arrays(size: Size, rule: str, decay: int, fold: int, strength: float, *before: int) -> Inputs:
    """Arrays of tokens ``(*before, heads, X)``: unit keys, beta to 2; ``erase`` is of value heads."""
    heads, width, few = size.heads, size.width, max(size.heads // fold, 1)
    made: Inputs = {x: normal(size, *before, few, width, seed=seed) for seed, x in enumerate("qk")}
    made["q"] = made["q"] * width**-0.5
    made["v"] = normal(size, *before, heads, width, seed=2)
    made |= {"read": normal(size, *before, few, width, seed=5), "erase": normal(size, *before, heads, width, seed=6)}
    made |= {x: F.normalize(made[x].float(), dim=-1).to(size.dtype) for x in ("k", "read", "erase")}
    made["beta"] = 2 * uniform(size, *before, heads)
    shape = {NONE: (), HEAD: (heads,), TOKEN: (*before, heads), CHANNEL: (*before, heads, width)}[decay]
    made["log_decay"] = None
    if decay:
        drawn = uniform(size, *shape)
        made["log_decay"] = -strength * drawn**4 if strength else -drawn / 16
    return {name: x for name, x in made.items() if name in ("q", "k", "v", "log_decay", *ERASED[rule])}


def _whole(
    name: str,
    rule: str,
    decay: int = NONE,
    *,
    learned: bool = False,
    documents: bool = False,
    state: bool = False,
    fold: int = 1,
    main: bool = False,
    length: int = SHORT,
    strength: float = 0.0,
    thin: bool = False,
) -> Call:
    """A call over whole sequences.

    Args:
        name: name of the call.
        rule: a key of ERASED.
        decay: what has a decay of its own.
        learned: log_decay has a gradient.
        documents: whether the call has documents.
        state: whether the call has a state before its first token.
        fold: value heads of a key head.
        main: whether it launches the kernels that the table of tiles is about.
        length: tokens of the sequence.
        strength: log_decay goes down to minus this, most of it near 0; 0: down to -1/16, evenly.
        thin: the values are less wide than the keys.
    """

    def inputs(size: Size) -> Inputs:
        made = _arrays(size, rule, decay, fold, strength, size.batch, size.length)
        if thin:
            made["v"] = made["v"][..., : size.width // 2 + 8]
        made["documents"] = documents_of(size) if documents else None
        shape = size.batch, *made["v"].shape[2:3], size.width, made["v"].shape[-1]
        made["initial_state"] = normal(size, *shape, seed=3).float() if state else None
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        names = ("q", "k", "v", *ERASED[rule], "initial_state", *(["log_decay"] if learned else []))
        given = followed(given, names)
        o, last = delta_attention(**given, return_state=state, backend=backend)
        return differentiated(given, names, {"output": o} if last is None else {"output": o, "state": last})

    return Call(name, inputs, run, main, length)


def _step(name: str, rule: str, decay: int = NONE, *, fold: int = 1, main: bool = False) -> Call:
    """As :func:`_whole`, for one token."""

    def inputs(size: Size) -> Inputs:
        made = _arrays(size, rule, decay, fold, 0.0, size.batch)
        made["state"] = normal(size, size.batch, size.heads, size.width, size.width, seed=3).float()
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        given = {**given, "state": given["state"].clone()}
        return {"output": delta_attention_step(**given, backend=backend), "state": given["state"]}

    return Call(name, inputs, run, main)


CALLS = (
    _whole("gated", "beta", TOKEN, learned=True, main=True),
    _whole("channels", "beta", CHANNEL, learned=True, main=True),
    _whole("everything", "general", CHANNEL, learned=True, documents=True, state=True, fold=2, main=True),
    _step("step", "beta", TOKEN, main=True),
    _whole("beta", "beta", fold=2),
    _whole("heads, documents", "beta", HEAD, documents=True),
    _whole("general, documents", "general", TOKEN, learned=True, documents=True, state=True, fold=2),
    _whole("general, heads", "general", HEAD),
    _whole("plain", "plain"),
    _whole("plain, documents", "plain", TOKEN, learned=True, documents=True),
    _whole("plain channels", "plain", CHANNEL, learned=True),
    _step("step, channels", "general", CHANNEL, fold=2),
    _step("step, heads", "beta", HEAD),
    _step("step, plain", "plain"),
    of_one_head(_whole("gated", "beta", TOKEN, learned=True, main=True)),
    of_one_head(_step("step", "beta", TOKEN, main=True)),
)

HARDER = (
    _whole("strong decay", "beta", TOKEN, learned=True, strength=20.0, state=True, main=True),
    _whole("strong channels", "beta", CHANNEL, learned=True, strength=20.0, state=True, documents=True),
    _whole("long", "beta", TOKEN, length=4097),
    _whole("thin values", "general", CHANNEL, state=True, thin=True),
    strided(_whole("gated", "beta", TOKEN, state=True)),
)
