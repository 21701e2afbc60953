"""Checks of shapes, of dtypes, and of the compiled module."""

from __future__ import annotations

import copy
import warnings
from functools import partial

import torch
from torch import Tensor, nn

from zoo.conformance.candidate import SEED, Candidate
from zoo.conformance.search import Case

ROUNDINGS = 8  # times what rounding the inputs and weights once does, the error that a dtype may have
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def shapes(candidate: Candidate, length: int) -> str | None:
    """Checks that the output is a finite tensor of the shape and dtype of the input."""
    for batch in (1, 2):
        x = candidate.draw(batch, length)
        y = candidate.run(x)
        if not isinstance(y, Tensor):
            return f"returns a {type(y).__name__}: expected a tensor; wrap the module so that it returns only that"
        if y.shape != x.shape:
            return f"the output of {batch} rows has shape {tuple(y.shape)}, expected {tuple(x.shape)}"
        if y.dtype != x.dtype:
            return f"the output is of {y.dtype}, expected {x.dtype}"
        if not torch.isfinite(y).all():
            token = int((~torch.isfinite(y)).any(-1).any(0).nonzero()[0])
            return f"output {token} of {batch} rows is not finite"
    return None


def reads_its_input(candidate: Candidate, length: int) -> str | None:
    """Checks that some output changes with the inputs; otherwise no other check can see anything."""
    x = candidate.draw(1, length)
    if candidate.difference(candidate.run(x + candidate.draw_like(x)), candidate.run(x)) is None:
        return "no output changes with the input: the other checks see nothing"
    return None


def one_dtype(name: str) -> Case:
    """Returns the check of a dtype: outputs are of it, and as exact as it allows."""
    return partial(_in_dtype, dtype=DTYPES[name])


def _in_dtype(candidate: Candidate, length: int, dtype: torch.dtype) -> str | None:
    low = copy.deepcopy(candidate.original).to(dtype)
    x = candidate.draw(2, length).to(dtype)
    torch.manual_seed(SEED)
    with torch.no_grad():
        y = copy.deepcopy(low)(x)
        if y.dtype != dtype:
            return f"the output is of {y.dtype}, expected {dtype}"
        if not torch.isfinite(y).all():
            return "the output is not finite"
        if dtype == candidate.dtype:
            return None
        eps = torch.finfo(dtype).eps
        exact, near = (_rounded_once(candidate, low, x, by) for by in (0.0, eps))
    error, allowed = _distance(y, exact), ROUNDINGS * max(eps, _distance(near, exact))
    if not error <= allowed:
        return f"the error of the median token is {error:.2g} of it, and rounding explains {allowed:.2g}"
    return None


def _rounded_once(candidate: Candidate, low: nn.Module, x: Tensor, by: float) -> Tensor:
    """Outputs, in the dtype of the checks, of narrow weights and inputs, each changed by a share of about ``by``."""
    module = copy.deepcopy(low).to(candidate.dtype)
    random = torch.Generator().manual_seed(SEED)

    def changed(value: Tensor) -> Tensor:
        return value * (1 + by * torch.randn(value.shape, generator=random, dtype=torch.float64).to(value))

    for parameter in module.parameters():
        parameter.copy_(changed(parameter))
    torch.manual_seed(SEED)
    return module(changed(x.to(candidate.dtype)))


def _distance(got: Tensor, want: Tensor) -> float:
    """Distance of the median token, of its norm; choices that are close may fall otherwise for a few."""
    want = want.double()
    return float(((got.double() - want).norm(dim=-1) / want.norm(dim=-1).clamp_min(1e-300)).median())


def compiled(candidate: Candidate, length: int) -> str | None:
    """Checks that ``torch.compile(fullgraph=True, backend="aot_eager")`` gives what the module gives."""
    torch._dynamo.reset()
    x, module = candidate.draw(2, length), candidate.fresh()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=False)(x)
    if found := candidate.difference(y, candidate.run(x)):
        return f"output {found[0][1]} differs from that of the module itself by {found[1]:.2g}"
    return None
