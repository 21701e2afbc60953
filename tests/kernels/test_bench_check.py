"""zoo_kernels.bench: the judge of correctness, and what it compares."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.test_bench import SHAPE, parse
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import Case
from zoo_kernels.bench.check import Check, RoundedProducts
from zoo_kernels.bench.record import REPEATS, Shape


def test_the_judge_finds_one_bad_block_and_what_is_not_finite():
    torch.manual_seed(0)
    truth = {name: torch.randn(2, 200, 3, 16, dtype=torch.float64) for name in ("output", "grad q")}
    rounded = {name: x.half() for name, x in truth.items()}
    for spoil, expected in ((None, []), (0.05, ["backward"]), (torch.nan, ["backward"])):
        got = {name: x.clone() for name, x in rounded.items()}
        if spoil is not None:
            got["grad q"][1, 130, 2, 5] += spoil
        bench = Bench(parse(["device=cpu", "dry=true"]), "correctness_linear")
        Check(Case("case", SHAPE, None, {})).judge(bench, got, rounded, truth)
        assert [r.direction for r in bench.records if not r.reached] == expected
        assert len(bench.errors) == len(expected)
        assert all("grad q" in e["error"] for e in bench.errors)


def test_plain_low_precision_rounds_products_in_both_directions():
    a, b = torch.randn(2, 3, 8, 8, requires_grad=True).unbind()
    with RoundedProducts(torch.bfloat16):
        found = a @ b
        (grad,) = torch.autograd.grad(found.sum(), a)
    low = a.bfloat16() @ b.bfloat16()
    assert found.dtype == torch.float32 and torch.equal(found, low.float())
    assert torch.equal(grad, (torch.ones_like(low) @ b.bfloat16().mT).float())
    assert not torch.equal(a @ b, found)


@pytest.mark.parametrize("graph", [False, True])
def test_a_check_finds_a_wrong_gradient_and_a_wrong_repeat(graph):
    calls = []

    def triple(x, backend):
        calls.append(backend)
        wrong = backend == "triton" and not graph
        return torch.where(x > 0, 3 * x, 3 * x.detach()) if wrong else 3 * x + (backend == "triton") * len(calls)

    sizes = {"x": (1, 70, 2, 4)} | ({} if graph else {"to output": (1, 70, 2, 4)})
    bench = Bench(parse(["device=cpu", "dry=true"]), "correctness_linear")
    check = Check(Case("case", Shape(1, 70, 2, 4), triple, sizes), graph=graph)
    check.run(bench)
    assert [r.direction for r in bench.records if not r.reached] == (["forward"] if graph else ["backward"])
    replace(check, repeats=2).run(bench)
    assert bench.records[-1].metric == REPEATS and bench.records[-1].value == graph
