"""zoo_kernels.bench: what is compared with a reference, and how it is judged."""

import pytest
import torch

from tests.kernels.bench.test_script import parse
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.check import Checked
from zoo_kernels.bench.record import REPEATS
from zoo_kernels.tools.calls import Call, Size
from zoo_kernels.tools.check import FormCheck, RoundedProducts

SIZE = Size(16, 200, 2, 3, torch.float16)


def test_the_judge_finds_one_bad_block_and_what_is_not_finite():
    torch.manual_seed(0)
    truth = {name: torch.randn(2, 200, 3, 16, dtype=torch.float64) for name in ("output", "gradient of q")}

    def run(inputs, backend):
        return truth if inputs["x"].dtype == torch.float64 else {name: x.half() for name, x in truth.items()}

    check = FormCheck(Call("made up", lambda size: {"x": torch.zeros(1)}, run), SIZE)
    for spoil, expected in ((None, []), (0.05, ["gradient of q"]), (torch.nan, ["gradient of q"])):
        got = {name: x.half() for name, x in truth.items()}
        if spoil is not None:
            got["gradient of q"][1, 130, 2, 5] += spoil
        assert [one.array for one in check.worst(got) if one.ratio > 1] == expected
    wrong = check.worst({"output": truth["output"][:, 1:], "gradient of q": truth["gradient of q"]})
    assert wrong[0].array == "output of shape (2, 199, 3, 16)" and wrong[0].ratio > 1


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

    def run(inputs, backend):
        calls.append(backend)
        x = inputs["x"].detach().requires_grad_()
        y = 3 * x + (graph and backend == "triton") * len(calls)
        (grad,) = torch.autograd.grad(y.sum(), x)
        grads = {} if graph else {"gradient of x": grad + (backend == "triton")}
        return {"output": y.detach()} | grads

    call = Call("made up", lambda size: {"x": torch.ones(1, 70, 2, 4).to(size.dtype)}, run)
    bench = Bench(parse(["device=cpu", "dry=true"]), "correctness_linear")
    check = Checked(call, SIZE, graph=graph)
    check.run(bench)
    records, errors = bench.found.records, bench.found.errors
    assert [r.direction for r in records if not r.reached] == (["forward"] if graph else ["backward"])
    assert len(errors) == 1 and "times the allowance" in errors[0]["error"]
    check._replace(repeats=2).run(bench)
    assert records[-1].metric == REPEATS and records[-1].value == 2 * graph
