"""Lengths, widths, decays and rules drawn together, for both families and all backends that run here.

Other tests hold one of them at a time. In 16 bits the error contract is asked for. In fp32 it is not: of some 200 such
cases ten were up to 2.4 times over twice the error of plain code, which is then a few units in the last place. Results
are compared with fp64 instead, within a fixed bound.
"""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch

from tests.kernels.linear_oracle import assert_all_close, assert_contract, solved
from tests.kernels.softmax_oracle import dense
from zoo_kernels import softmax_attention
from zoo_kernels.linear.torch_ops import LINEAR

pytest.importorskip("triton")

from tests.kernels.softmax.test_softmax_triton import NAMES, assert_close, differentiate, draw, mask_of, plain, sizes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("poisoned")]

FP32, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
LENGTHS = (1, 2, 15, 63, 64, 65, 100, 127, 129)
LONG = 1000
WIDTHS = ((16, 24), (60, 36), (64, 64), (24, 128), (100, 80), (128, 128), (256, 64), (40, 256))
NARROW = WIDTHS[2:3]
DECAYS = ("zero", "alibi", "paper", "strong", "token", "soft_token")
ALGORITHMS = ("chunk", "auto", "scan", "parallel", "chunk")
RULES: tuple[dict[str, Any], ...] = (
    {},
    {"window": 9},
    {"window": 40, "sink_tokens": 3},
    {"documents": True},
    {"window": 1},
)
HEADS = ((1, 1), (4, 2), (3, 1), (2, 2), (6, 3), (8, 2))
TOLERANCE = 2e-5  # of fp32 numbers around 1, as in test_linear_triton.py


def drawn(some, dtypes, *others):
    """Every length and type with so many of the widths that the type goes with, and the other choices in turn."""
    turns = [cycle(choices) for choices in others]
    for dtype in dtypes:
        widths = cycle(pair for pair in WIDTHS if max(pair) <= LINEAR.widths[dtype])
        for length in LENGTHS:
            for _ in range(some):
                yield (dtype, length, *next(widths), *(next(turn) for turn in turns))
        if dtype != BRAIN:  # whose products take minutes on a CPU
            yield from ((dtype, LONG, *pair, *(next(turn) for turn in turns)) for pair in NARROW)


def check_linear(dtype, length, width, value, kind, algorithm, backend):
    if dtype != FP32:
        assert_contract(length, kind, dtype, width, value, backend=backend, algorithm=algorithm)
        return
    case, exact, _, terms = solved(length, kind, dtype, width, value)
    got, exact = case.measured(dtype, backend=backend, algorithm=algorithm), dict(exact)
    of_decay = got.pop("grad log_decay"), exact.pop("grad log_decay")
    error = (of_decay[0] - of_decay[1]).abs().reshape(-1, 3).amax(0)
    assert (error <= TOLERANCE * terms).all()
    assert_all_close(got, exact, TOLERANCE)


@pytest.mark.parametrize(
    ("dtype", "length", "width", "value", "kind", "algorithm"), list(drawn(3, (FP32, HALF, BRAIN), DECAYS, ALGORITHMS))
)
def test_linear_attention_in_pytorch(dtype, length, width, value, kind, algorithm):
    check_linear(dtype, length, width, value, kind, algorithm, "torch")


@pytest.mark.parametrize(
    ("dtype", "length", "width", "value", "kind", "algorithm"), list(drawn(1, (FP32, HALF), DECAYS, ALGORITHMS))
)
def test_linear_attention_in_triton(dtype, length, width, value, kind, algorithm):
    check_linear(dtype, length, width, value, kind, algorithm, "triton")


def check_softmax(dtype, length, width, value, rule, heads, backend):
    if "documents" in rule:
        cuts = torch.tensor([0, length // 2, length // 2 + 1, length]).diff().clamp(min=0)
        rule = {"documents": torch.arange(3).repeat_interleave(cuts)[None]}
    inputs, upstream = draw(length, heads=heads[0], groups=heads[1], width=width, value=value, dtype=dtype)
    scale = width**-0.5

    def ours(*x):
        return softmax_attention(*x, scale=scale, return_lse=True, backend=backend, **rule)

    exact = differentiate(lambda *x: dense(*x, scale=scale, **rule), inputs, upstream, torch.float64)
    got = differentiate(ours, inputs, upstream, dtype)
    if dtype == FP32:
        assert_all_close(dict(zip(NAMES, got)), dict(zip(NAMES, exact)), TOLERANCE)
        return
    mask = mask_of(length, length, **rule)
    eager = differentiate(lambda *x: plain(*x, mask, scale), inputs, upstream, dtype)
    assert_close(got, exact, eager, dtype, sizes(inputs, upstream, exact, mask, scale))


@pytest.mark.parametrize(
    ("dtype", "length", "width", "value", "rule", "heads"), list(drawn(3, (FP32, HALF, BRAIN), RULES, HEADS))
)
def test_softmax_attention_in_pytorch(dtype, length, width, value, rule, heads):
    check_softmax(dtype, length, width, value, rule, heads, "torch")


@pytest.mark.parametrize(
    ("dtype", "length", "width", "value", "rule", "heads"),
    list(drawn(1, (FP32, HALF), RULES, ((1, 1), (2, 1), (2, 2)))),
)
def test_softmax_attention_in_triton(dtype, length, width, value, rule, heads):
    check_softmax(dtype, length, width, value, rule, heads, "triton")
