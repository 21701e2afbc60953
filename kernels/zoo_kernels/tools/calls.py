"""Calls of the public functions that between them start every kernel with every flag.

scripts/compile_kernels.py compiles what they launch, tests compare what two of them would compile, and the tuner runs
them to check and time a candidate. Inputs are made from a seed, so that two backends can be given the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zoo_kernels

Inputs = dict[str, Any]
Outputs = dict[str, Tensor]

SHORT, LONG = 100, 600  # tokens: one segment of linear attention, two


class Size(NamedTuple):
    """Shape and type of the inputs of a call; half of the heads read the same keys where a call has grouped heads."""

    width: int
    length: int = SHORT
    batch: int = 2
    heads: int = 4
    dtype: torch.dtype = torch.bfloat16
    device: str = "cpu"


class Call(NamedTuple):
    """One way to call a family: ``run(inputs(size), backend)`` gives its outputs and gradients by name.

    ``main``: worth compiling where time is short; the others differ from these in a flag or two. ``length``: enough
    tokens for all kernels of the call.
    """

    family: str
    name: str
    inputs: Callable[[Size], Inputs]
    run: Callable[[Inputs, str], Outputs]
    main: bool = False
    length: int = SHORT


def raised(inputs: Inputs, dtype: torch.dtype = torch.float64) -> Inputs:
    """The same numbers in ``dtype``, for a reference."""
    return {k: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in inputs.items()}


def _normal(size: Size, *shape: int, seed: int, scale: float = 1.0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale
    return made.to(size.device, size.dtype)


def _uniform(size: Size, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(4)).to(size.device)


def _documents(size: Size) -> Tensor:
    """Three documents, or as many as there are tokens."""
    cuts = torch.arange(size.length) * 3 // max(size.length, 1)
    return cuts.expand(size.batch, -1).contiguous().to(size.device)


def _followed(inputs: Inputs, names: tuple[str, ...]) -> Inputs:
    """The same tensors; those called ``names`` get a gradient."""
    given = {k: x.detach() if isinstance(x, Tensor) else x for k, x in inputs.items()}
    for name in names:
        if given[name] is not None:
            given[name].requires_grad_()
    return given


def _differentiated(inputs: Inputs, names: tuple[str, ...], outputs: Outputs) -> Outputs:
    """Adds the gradients of ``names`` for fixed gradients of the outputs."""
    wanted = [name for name in names if inputs.get(name) is not None]
    followed = [x for x in outputs.values() if x.requires_grad]
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(x.shape, generator=generator).to(x.device, x.dtype) for x in followed]
    gradients = torch.autograd.grad(followed, [inputs[name] for name in wanted], weights)
    found = {name: x.detach() for name, x in outputs.items()}
    return found | {f"gradient of {name}": x for name, x in zip(wanted, gradients)}


def _linear(
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
            x: _normal(size, batch, tokens, heads, width, seed=seed, scale=width**-0.25) for seed, x in enumerate("qkv")
        }
        if options.get("normalize"):
            made |= {x: made[x].abs() for x in "qk"}
        made["log_decay"] = -_uniform(size, *shape) / 16 if decay else None
        made["documents"] = _documents(size) if documents else None
        made["initial_state"] = None
        if state:
            made["initial_state"] = _normal(size, batch, heads, width, width, seed=3).float()
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        followed = ("q", "k", "v", "initial_state", *(["log_decay"] if learned else []))
        given = _followed(given, followed)
        o, last = zoo_kernels.linear_attention(**given, return_state=state, backend=backend, **options)
        return _differentiated(
            given, followed, {"output": o, "state": last} if isinstance(last, Tensor) else {"output": o}
        )

    return Call("linear", name, inputs, run, main, length)


def _linear_step(name: str, decay: int, main: bool = False) -> Call:
    """As :func:`_linear`, for one token; a decay per token has 2 dimensions."""

    def inputs(size: Size) -> Inputs:
        batch, heads, width = size.batch, size.heads, size.width
        shape = {0: (), 1: (heads,), 2: (batch, heads)}[decay]
        made: Inputs = {x: _normal(size, batch, heads, width, seed=seed) for seed, x in enumerate("qkv")}
        made["log_decay"] = -_uniform(size, *shape) if decay else None
        made["state"] = _normal(size, batch, heads, width, width, seed=3).float()
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        given = {**given, "state": given["state"].clone()}
        return {"output": zoo_kernels.linear_attention_step(**given, backend=backend), "state": given["state"]}

    return Call("linear", name, inputs, run, main)


def _softmax(
    name: str,
    *,
    share: int = 1,
    keys_before: int = 0,
    documents: bool = False,
    bias: bool = False,
    main: bool = False,
    **options: Any,
) -> Call:
    """``share``: query heads per key head; ``keys_before``: keys before the first query."""

    def inputs(size: Size) -> Inputs:
        batch, heads, width, keys = size.batch, size.heads, size.width, size.length + keys_before
        made: Inputs = {"q": _normal(size, batch, size.length, heads, width, seed=0)}
        made |= {x: _normal(size, batch, keys, heads // share, width, seed=seed) for seed, x in ((1, "k"), (2, "v"))}
        made["documents"] = _documents(size._replace(length=keys)) if documents else None
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        followed = ("q", "k", "v")
        given = _followed(given, followed)
        o, lse = zoo_kernels.softmax_attention(**given, return_lse=True, backend=backend, **options)
        return _differentiated(given, followed, {"output": o, "lse": lse})

    return Call("softmax", name, inputs, run, main)


def _layout(size: Size, block: int) -> zoo_kernels.BlockLayout:
    """Each block of queries reads the first block, the one before itself and itself, the last two by masks of bits."""
    rows = -(-size.length // block)
    query = torch.arange(rows, device=size.device)
    pairs = torch.stack([query * 0, query - 1, query], 1).reshape(-1)
    masks = torch.stack([query * 0 - 1, query * 0, query * 0], 1).reshape(-1)
    i, words = torch.arange(block), -(-block // 32)
    seen = torch.nn.functional.pad((i[:, None] + i) % 3 > 0, (0, words * 32 - block)).view(1, block, words, 32)
    bits = (seen.long() << torch.arange(32)).sum(-1).to(torch.int32).to(size.device)
    none = pairs * 0
    return zoo_kernels.BlockLayout.from_pairs(
        block, rows, none, none, query.repeat_interleave(3), pairs, masks, bits, longest=3
    )


def _softmax_layout(name: str, block: int, *, biased: bool = False, share: int = 1, main: bool = False) -> Call:
    plain = _softmax(name, share=share)

    def inputs(size: Size) -> Inputs:
        rows = -(-size.length // block)
        bias = None
        if biased:
            bias = torch.randn(1, size.heads, rows, rows, generator=torch.Generator().manual_seed(5)).to(size.device)
        return plain.inputs(size) | {"layout": _layout(size, block), "block_bias": bias}

    def run(given: Inputs, backend: str) -> Outputs:
        followed = ("q", "k", "v", *(["block_bias"] if biased else []))
        given = _followed(given, followed)
        o, lse = zoo_kernels.softmax_attention(**given, return_lse=True, backend=backend)
        return _differentiated(given, followed, {"output": o, "lse": lse})

    return Call("softmax", name, inputs, run, main, 300)


def _softmax_step(name: str, *, share: int = 1, ring: bool = False, main: bool = False, **options: Any) -> Call:
    """``ring``: the cache is written as a ring; here it is not full, so the numbers are the same."""

    def inputs(size: Size) -> Inputs:
        batch, heads, width, keys = size.batch, size.heads, size.width, size.length + 64
        made: Inputs = {"q": _normal(size, batch, heads, width, seed=0)}
        made |= {x: _normal(size, batch, keys, heads // share, width, seed=1) for x in ("k_cache", "v_cache")}
        made["lengths"] = (torch.arange(batch) % size.length + 1).flip(0).to(size.device)
        return made

    def run(given: Inputs, backend: str) -> Outputs:
        return {"output": zoo_kernels.softmax_attention_step(**given, ring=ring, backend=backend, **options)}

    return Call("softmax", name, inputs, run, main)


def _of_one_head(call: Call) -> Call:
    """The same with a single head: integers that are 1 become constants of a kernel unless they must not."""
    return call._replace(name=f"{call.name}, one head", inputs=lambda size: call.inputs(size._replace(heads=1)))


def _of_heads(call: Call, heads: int) -> Call:
    """The same with ``heads`` query heads."""
    name = f"{call.name}, {heads} heads"
    return call._replace(name=name, inputs=lambda size: call.inputs(size._replace(heads=heads)))


CALLS: tuple[Call, ...] = (
    _linear("decay", decay=1, main=True),
    _linear("everything", decay=3, learned=True, documents=True, state=True, main=True, length=LONG),
    _linear("parallel", decay=1, algorithm="parallel", main=True),
    _linear("parallel everything", decay=3, documents=True, state=True, algorithm="parallel", main=True),
    _linear_step("step", 1, main=True),
    _linear("plain"),
    _linear("token decay", decay=3, learned=True),
    _linear("documents", decay=1, documents=True, length=LONG),
    _linear("normalize", decay=1, normalize=True, scale=2.0),
    _linear("scan", decay=1, algorithm="scan"),
    _linear_step("step, token decay", 2),
    _linear_step("step, plain", 0),
    _softmax("causal", main=True),
    _softmax("documents, window, sinks", documents=True, window=40, sink_tokens=4, share=2, keys_before=7, main=True),
    _softmax_layout("layout of 128, bias", 128, biased=True, share=2, main=True),
    _softmax_layout("layout of 64, bias", 64, biased=True, share=2),
    _softmax_layout("layout of 128", 128),
    _softmax_layout("layout of 64", 64),
    _softmax_step("step", main=True),
    _softmax_step("step, grouped, window, sinks", share=2, window=40, sink_tokens=4, main=True),
    _softmax_step("step, ring", share=2, window=40, sink_tokens=4, ring=True),
    _softmax_step("step, grouped", share=4),
    _of_heads(_softmax_step("step, grouped", share=32), 32),
    _of_heads(_softmax_step("step, grouped", share=96), 96),
    _softmax("window", window=40),
    _softmax("documents", documents=True),
    _softmax("window, sinks", window=40, sink_tokens=4),
    _of_one_head(_linear("decay", decay=1, main=True)),
    _of_one_head(_linear_step("step", 1, main=True)),
    _of_one_head(_softmax("causal", main=True)),
    _of_one_head(_softmax_layout("layout of 64, bias", 64, biased=True, main=True)),
    _of_one_head(_softmax_step("step", main=True)),
)
