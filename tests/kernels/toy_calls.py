"""The calls that launch the kernel of the toy family."""

from __future__ import annotations

import torch

from tests.kernels.toy_family import toy_attention
from zoo_kernels.tools.calls import Call, differentiated, followed, normal


def _inputs(size):
    shape = size.batch, size.length, size.heads, size.width
    return {"x": normal(size, *shape, seed=0), "weight": normal(size, size.heads, seed=1)}


def _run(given, backend):
    given = followed(given, ("x", "weight"))
    return differentiated(given, ("x", "weight"), {"output": toy_attention(**given, power=3, backend=backend)})


CALLS = (Call("plain", _inputs, _run, main=True), Call("untold", _inputs, lambda given, backend: {"x": torch.ones(1)}))
