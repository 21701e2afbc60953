"""Calls of the public functions that between them launch every kernel with every flag.

scripts/compile_kernels.py compiles what they launch, tests compare what two of them would compile, the tuner runs them
to check and time a candidate, and the benchmark checks them. Inputs are made from a seed, so that two backends can be
given the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo_kernels.family import families

Inputs = dict[str, Any]
Outputs = dict[str, Tensor]

SHORT = 100  # tokens


class Size(NamedTuple):
    """Shape, dtype and device of the inputs of a call; with grouped heads, key heads are fewer than ``heads``."""

    width: int
    length: int = SHORT
    batch: int = 2
    heads: int = 4
    dtype: torch.dtype = torch.bfloat16
    device: str = "cpu"


class Call(NamedTuple):
    """One way to call a family: ``run(inputs(size), backend)`` returns its outputs and gradients by name.

    Attributes:
        name: name of the call.
        inputs: makes the inputs of a size, from a seed.
        run: runs the call on its inputs with a backend.
        main: worth compiling where time is short; other calls differ from a main one in a flag or two.
        length: enough tokens for all kernels of the call.
        family: name of the family, filled in by :func:`every_call`.
    """

    name: str
    inputs: Callable[[Size], Inputs]
    run: Callable[[Inputs, str], Outputs]
    main: bool = False
    length: int = SHORT
    family: str = ""


def raised(inputs: Inputs, dtype: torch.dtype = torch.float64) -> Inputs:
    """Converts the inputs to ``dtype``, for a reference."""
    return {k: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for k, x in inputs.items()}


def normal(size: Size, *shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Normal random numbers from a seed, in the dtype of the inputs."""
    generator = torch.Generator(size.device).manual_seed(seed)
    return (torch.randn(*shape, generator=generator, device=size.device) * scale).to(size.dtype)


def uniform(size: Size, *shape: int) -> Tensor:
    """Uniform random numbers from 0 to 1 in fp32."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(4)).to(size.device)


def documents_of(size: Size) -> Tensor:
    """Ids of three packed documents, or of as many as there are tokens."""
    cuts = torch.arange(size.length) * 3 // max(size.length, 1)
    return cuts.expand(size.batch, -1).contiguous().to(size.device)


def followed(inputs: Inputs, names: tuple[str, ...]) -> Inputs:
    """Returns the same inputs; those called ``names`` require a gradient."""
    given = {k: x.detach() if isinstance(x, Tensor) else x for k, x in inputs.items()}
    for name in names:
        if given[name] is not None:
            given[name].requires_grad_()
    return given


def differentiated(inputs: Inputs, names: tuple[str, ...], outputs: Outputs) -> Outputs:
    """Adds to the outputs the gradients of ``names``, for fixed gradients of the outputs."""
    wanted = [name for name in names if inputs.get(name) is not None]
    ends = [x for x in outputs.values() if x.requires_grad]
    generator = torch.Generator().manual_seed(99)
    weights = [torch.randn(x.shape, generator=generator).to(x.device, x.dtype) for x in ends]
    gradients = torch.autograd.grad(ends, [inputs[name] for name in wanted], weights)
    found = {name: x.detach() for name, x in outputs.items()}
    return found | {f"gradient of {name}": x for name, x in zip(wanted, gradients)}


def of_one_head(call: Call) -> Call:
    """Returns the call with a single head: Triton may make integers that are 1 constants of a kernel."""
    return call._replace(name=f"{call.name}, one head", inputs=lambda size: call.inputs(size._replace(heads=1)))


def of_heads(call: Call, heads: int) -> Call:
    """Returns the call with ``heads`` query heads."""
    name = f"{call.name}, {heads} heads"
    return call._replace(name=name, inputs=lambda size: call.inputs(size._replace(heads=heads)))


def strided(call: Call) -> Call:
    """Returns a call with arrays whose heads lie outside of tokens in memory."""

    def inputs(size: Size) -> Inputs:
        made = call.inputs(size)
        for name in "qkv":
            made[name] = made[name].transpose(1, 2).contiguous().transpose(1, 2)
        return made

    return call._replace(name=f"{call.name}, strided", inputs=inputs)


def listed_blocks(blocks: int, near: int, first: int = 0, random: int = 0, heads: int = 1) -> Tensor:
    """Blocks of keys that each block of queries lists: ``(1, heads, blocks, blocks)``.

    The ``near`` latest (a window), the ``first`` ones (with a window: Longformer, arXiv:2004.05150), and ``random``
    earlier ones by head (with both: BigBird, arXiv:2007.14062).
    """
    i = torch.arange(blocks)
    distance = i[:, None] - i
    base = ((distance >= 0) & ((distance < near) | (i < first))).expand(1, heads, -1, -1)
    scores = torch.rand(base.shape, generator=torch.Generator().manual_seed(0))
    best = scores.masked_fill(base | (distance < 0), -1.0).topk(min(random, blocks), dim=-1)
    return base | torch.zeros_like(base).scatter(-1, best.indices, best.values >= 0)


def every_call(harder: bool = False) -> list[Call]:
    """Returns the calls of all families, each with the name of its family."""
    name = "HARDER" if harder else "CALLS"
    rooms = [family for family in families().values() if family.calls]
    return [c._replace(family=f.name) for f in rooms for c in getattr(import_module(str(f.calls)), name, ())]
