"""A third family, registered here, goes through all that families share; only its registration knows its name."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch.utils.flop_counter import FlopCounterMode

import zoo_kernels
from tests.kernels import toy_family
from tests.kernels.toy_family import TOY, ToyArguments, ToyToken, ToyUpstream, toy_attention
from zoo_kernels import BackendError, backend, family
from zoo_kernels.launch import INTERPRETER, Config, record
from zoo_kernels.tools.calls import Size, every_call
from zoo_kernels.tools.tuner import FormCheck, TileRow, calls_of, find_row

BACKENDS = ["torch", "triton", "reference"]
every_backend = pytest.mark.parametrize("name", BACKENDS)


@pytest.fixture(autouse=True)
def registered():
    backend._announce_once.cache_clear()
    family.register(TOY)
    yield
    del family._families[TOY.name]
    backend._announce_once.cache_clear()


def draw(dtype=torch.float32, width=8):
    x = torch.randn(2, 5, 3, width, dtype=dtype, requires_grad=True)
    weight, bias = (torch.randn(n, dtype=dtype, requires_grad=True) for n in (3, width))
    return x, weight, bias, [torch.randn(2, 5, 3, width, dtype=dtype) for _ in range(2)]


@every_backend
@pytest.mark.parametrize("power", [None, 3])
def test_every_form_gives_outputs_and_gradients(name, power):
    if name == "triton":
        pytest.importorskip("triton")
    x, weight, bias, more = draw()
    o = toy_attention(x, weight, bias=bias, more=more, power=power, backend=name)
    want = (power or 1) * x * weight[:, None] + more[0] + more[1] + bias
    torch.testing.assert_close(o, want)
    upstream = torch.randn_like(o)
    grads = [torch.autograd.grad(y, (x, weight, bias), upstream) for y in (o, want)]
    torch.testing.assert_close(*grads)


def test_what_needs_no_gradient_gets_none():
    x, weight, _, more = draw()
    o = toy_attention(x.detach(), weight, more=more)
    (grad,) = torch.autograd.grad(o.sum(), weight)
    torch.testing.assert_close(grad, x.detach().sum((0, 1, 3)))


def test_autocast_reaches_no_backward_pass():
    x, weight, bias, more = draw()
    o = toy_attention(x, weight, bias=bias, more=more)
    grads = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            grads.append(torch.autograd.grad(o.square().sum(), (x, weight, bias), retain_graph=True))
    assert all(map(torch.equal, *grads))


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
def test_opcheck(full):
    x, weight, bias, more = draw()
    given = ToyArguments(x, weight, bias if full else None, more if full else [], 2 if full else None, "torch")
    torch.library.opcheck(toy_family.forward.op, tuple(given))
    saved = [y.detach() if isinstance(y, torch.Tensor) else y for y in given]
    upstream = ToyUpstream(torch.randn(2, 5, 3), torch.randn(x.shape))
    torch.library.opcheck(toy_family.backward.op, (*saved, *upstream))
    torch.library.opcheck(toy_family.step.op, (x.detach()[:, 0], torch.randn(2, 3, 8), "torch"))


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_compiled_in_one_graph_equals_eager(name):
    torch._dynamo.reset()
    x, weight, bias, more = draw()
    compiled = torch.compile(toy_attention, backend="aot_eager", fullgraph=True)
    results = []
    for function in (toy_attention, compiled):
        o = function(x, weight, bias=bias, more=more, power=2, backend=name)
        results.append((o, *torch.autograd.grad(o.square().sum(), (x, weight, bias))))
    torch.testing.assert_close(*results)


def test_flops_of_every_op_are_counted():
    x, weight, _, _ = draw()
    with FlopCounterMode(display=False) as counter:
        o = toy_attention(x, weight)
    assert counter.get_total_flops() == x.numel()
    with FlopCounterMode(display=False) as counter:
        o.sum().backward()
    assert counter.get_total_flops() == 2 * x.numel()


@every_backend
def test_a_step_writes_to_its_state_and_has_one_form_at_least(name):
    x, state = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    want = state + x
    o = toy_family.step(ToyToken(x, state, name))
    assert torch.equal(o, want) and torch.equal(state, want)


def test_empty_arrays_give_zeros_without_a_form(monkeypatch):
    monkeypatch.setitem(toy_family.forward.forms, "torch", lambda a: 1 / 0)
    x, weight, _, _ = draw()
    assert toy_attention(x[:0], weight).shape == (0, 5, 3, 8)


def test_auto_says_once_which_backend_it_takes_and_why(caplog):
    x, weight, _, _ = draw()
    with caplog.at_level(logging.INFO, "zoo_kernels"):
        toy_attention(x, weight)
        toy_attention(x, weight)
        toy_attention(x, weight, backend="torch")
    (told,) = [line.getMessage() for line in caplog.records]
    assert told == "toy attention on cpu: backend=torch (the Triton form needs a CUDA device)"


def test_what_cannot_run_is_refused_in_its_name():
    pytest.importorskip("triton")
    x, weight, _, _ = draw(width=33)
    with pytest.raises(BackendError, match=r"toy attention here: its heads are 33 wide, and the kernels take up to 32"):
        toy_attention(x, weight, backend="triton")
    with pytest.raises(BackendError, match=r"its arrays are torch.float64, and the kernels take float32\. Use"):
        toy_attention(x.double(), weight.double(), backend="triton")
    with pytest.raises(BackendError, match="backend='cuda' does not exist for toy attention"):
        toy_attention(x, weight, backend="cuda")


def test_forward_mode_is_refused_in_its_name():
    x, weight, _, _ = (y.detach() if isinstance(y, torch.Tensor) else y for y in draw())
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match=r"^toy attention has first derivatives"):
            toy_attention(dual, weight)
        with pytest.raises(NotImplementedError, match=r"^a step of toy attention has first derivatives"):
            toy_family.step(ToyToken(dual[:, 0], x[:, 0].clone(), "torch"))


def test_the_tools_know_its_calls_and_its_tiles():
    pytest.importorskip("triton")
    row = find_row("toy.scaled", torch.float32, 20, torch.device("cpu"))
    assert row == TileRow("toy", "scaled", INTERPRETER, 4, 32) and row.config == Config({"TILE": 16}, 4, 1)
    assert [call.name for call in calls_of(row, every_call(), Size(20, dtype=torch.float32))] == ["plain"]
    (call,) = (call for call in every_call() if (call.family, call.name) == ("toy", "plain"))
    assert FormCheck(call, Size(20, 7, dtype=torch.float32)).fault() is None
    with record("sm_90") as launches:
        call.run(call.inputs(Size(20, 7, dtype=torch.float32)), "triton")
    assert [launch.config for launch in launches] == [row.config]


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="a family 'toy' already"):
        family.register(TOY)
    tiles = {"mix": {}, "other": {}}
    with pytest.raises(ValueError, match="kernels mix of other are also in linear"):
        family.register(family.Family("other", "other attention", {}, tiles, ""))
    assert "other" not in family.families()


def test_widths_are_those_that_the_tables_of_tiles_have():
    for one in family.families().values():
        for dtype, widest in one.widths.items():
            for rows in (rows for by_gpu in one.tiles.values() for rows in by_gpu.values()):
                assert max(width for size, width in rows if size == dtype.itemsize) >= widest


def test_nothing_outside_its_room_names_a_family():
    """But the package, whose import of it is its registration."""
    root = Path(zoo_kernels.__file__).parent
    names = family.families().keys() - {"toy"}
    files = [*root.glob("*.py"), *root.glob("tools/*.py"), *root.glob("layout/*.py")]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[1:2] in ([n] for n in names):
                found.add(file.name)
            if isinstance(node, ast.Constant) and node.value in names:
                found.add(file.name)
    assert found == {"__init__.py"}
