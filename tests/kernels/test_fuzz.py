"""Random calls of both families against the fp64 reference, every backend: forward, log-sum-exp, state, gradients."""

from __future__ import annotations

import random

import pytest
import torch

from tests.kernels.linear_oracle import make_documents
from zoo_kernels import BlockLayout, linear_attention, softmax_attention

TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-4, torch.float16: 3e-2}


def cut(draw: random.Random, length: int) -> list[int]:
    """Lengths of documents of a row."""
    lengths = []
    while sum(lengths) < length:
        lengths.append(min(draw.choice((1, 2, 17, 40)), length - sum(lengths)))
    return lengths


def documents(draw: random.Random, batch: int, length: int) -> torch.Tensor:
    return make_documents([cut(draw, length) for _ in range(batch)])


def close(got, want, dtype, seed) -> None:
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        held = b.isfinite()
        assert torch.equal(a.double()[~held], b.double()[~held]), f"seed {seed}, part {i}"
        a, b = a.double()[held], b.double()[held]
        size = max(b.abs().max().item(), 1e-2) if b.numel() else 0
        assert not b.numel() or (a - b).abs().max() <= TOLERANCE[dtype] * size, f"seed {seed}, part {i}"


def softmax_case(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    batch, groups, fold = draw.choice((1, 2)), draw.choice((1, 2)), draw.choice((1, 2, 3))
    keys = draw.choice((1, 2, 16, 33, 50))
    queries, width, value = draw.randint(1, keys), draw.choice((1, 5, 8)), draw.choice((5, 8))
    dtype, backend = draw.choice(
        [(torch.float64, "torch"), (torch.float32, "torch"), (torch.float32, "triton"), (torch.float16, "torch")]
    )
    options = {"scale": draw.choice((None, -0.7, 0.0, 0.3, -1e-40))}
    if draw.random() < 0.4:
        rows = -(-keys // 16)
        index = torch.randint(-1, rows, (draw.choice((1, batch)), draw.choice((1, groups * fold)), rows, 2))
        options["layout"] = BlockLayout.from_index(index, 16)
    elif draw.random() < 0.6:
        options |= {"window": draw.randint(0, 20), "sink_tokens": draw.randint(0, 3)}
    if draw.random() < 0.4:
        options["documents"] = documents(draw, batch, keys)
    if draw.random() < 0.3:
        options["sink_logits"] = torch.randn(groups * fold).where(torch.rand(groups * fold) < 0.7, -torch.inf)
    sizes = (queries, groups * fold, width), (keys, groups, width), (keys, groups, value)
    inputs = [torch.randn(batch, *size).to(dtype) for size in sizes]
    upstream = torch.randn(batch, queries, groups * fold, value).to(dtype), torch.randn(batch, queries, groups * fold)
    results = []
    for to, how in ((dtype, backend), (torch.float64, "reference")):
        leaves = [x.to(to).requires_grad_() for x in inputs]
        o, lse = softmax_attention(*leaves, **options, backend=how, return_lse=True)
        total = (o * upstream[0].to(to)).sum() + (lse * upstream[1].to(lse.dtype)).masked_fill(lse.isinf(), 0).sum()
        results.append([o.detach(), lse.detach(), *torch.autograd.grad(total, leaves)])
    close(*results, dtype, seed)


def linear_case(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    batch, heads, length = draw.choice((1, 2)), draw.choice((1, 3)), draw.choice((1, 2, 33, 64, 70))
    width, value = draw.choice((1, 5, 16)), draw.choice((1, 8, 20))
    dtype, backend = draw.choice(
        [(torch.float64, "torch"), (torch.float32, "torch"), (torch.float32, "triton"), (torch.float16, "triton")]
    )
    options = {"scale": draw.choice((1.0, -0.7, 0.3)), "return_state": True, "wide": draw.random() < 0.3}
    algorithm = draw.choice(("auto", "parallel", "chunk", "scan"))
    if draw.random() < 0.4:
        options["documents"] = documents(draw, batch, length)
    decay = draw.choice((None, -torch.rand(heads), -5 * torch.rand(batch, length, heads) ** 4))
    heads_of = [torch.randn(batch, length, heads, n).to(dtype) for n in (width, width, value)]
    wide = [torch.randn(batch, heads, width, value), *([] if decay is None else [decay])]
    upstream = torch.randn(batch, length, heads, value).to(dtype), torch.randn(batch, heads, width, value)
    results = []
    for to, how in ((dtype, {"backend": backend, "algorithm": algorithm}), (torch.float64, {"backend": "reference"})):
        leaves = [x.to(to).requires_grad_() for x in heads_of]
        state, *given = [x.to(torch.promote_types(to, torch.float32)).requires_grad_() for x in wide]
        made = linear_attention(*leaves, *(given or [None]), initial_state=state, **options, **how)
        grads = torch.autograd.grad(made, [*leaves, state, *given], [g.to(x.dtype) for g, x in zip(upstream, made)])
        results.append([x.detach() for x in (*made, *grads)])
    close(*results, dtype, seed)


@pytest.mark.parametrize("first", [0, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", [softmax_case, linear_case])
def test_random_calls_equal_the_reference(case, first):
    pytest.importorskip("triton")
    for seed in range(first, 8 if first == 0 else 250):
        case(seed)
