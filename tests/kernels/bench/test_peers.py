"""zoo_kernels.bench: other implementations compute what ours do, on the same arrays."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.kernels import delta_oracle, linear_oracle
from tests.kernels.bench.test_script import SHAPE, parse
from tests.kernels.softmax_oracle import dense
from zoo_kernels.bench import across, clock, peers
from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.record import BACKWARD, BOTH, FORWARD, Shape
from zoo_kernels.convolution import bench_cases as convolution
from zoo_kernels.delta import bench_cases as delta
from zoo_kernels.linear import bench_cases as linear

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("length", [20, 256, 300])
@pytest.mark.parametrize("window", [None, 1, 16, 17, 100])
def test_the_masks_of_flex_attention(length, window):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def rule(b, h, i, j):
        return (i >= j) & (i - j < (window or length))

    made = peers.causal_mask(length, torch.device("cpu"), window, block=16)
    wanted = create_block_mask(rule, None, None, length, length, device="cpu", BLOCK_SIZE=16)
    assert torch.equal(made.to_dense(), wanted.to_dense()) and made.seq_lengths == wanted.seq_lengths
    q, k, v = (torch.randn(1, length, 2, 16) for _ in range(3))
    o, _ = dense(q, k, v, window=window)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    torch.testing.assert_close(flex_attention(*heads_first, block_mask=made).transpose(1, 2), o)


def fixed(q, k, v, g_gamma, scale, initial_state=None, output_final_state=False):
    state = torch.zeros(q.shape[0], 2, 16, 16) if initial_state is None else initial_state
    o, last, _ = linear_oracle.recurrence(q, k, v, g_gamma, state)
    return o * scale, last


def gated(q, k, v, g, beta, scale, initial_state=None, output_final_state=False):
    state = torch.zeros(q.shape[0], 2, 16, 16) if initial_state is None else initial_state
    return delta_oracle.recurrence(q, k, v, g, state, beta, scale=scale)


def fading(q, k, v, g, scale):
    return delta_oracle.recurrence(q, k, v, g, torch.zeros(q.shape[0], 2, 16, 16), scale=scale)


@pytest.fixture
def bench(monkeypatch):
    """On the CPU, as if on a GPU beside a library whose functions are those of the definitions."""
    library = {"simple_gla": fixed, "gated_delta_rule": gated, "kda": gated, "gla": fading}
    named = {f"{how}_{name}": f for name, f in library.items() for how in ("chunk", "fused_recurrent")}
    monkeypatch.setattr(peers, "importlib", SimpleNamespace(import_module=lambda name: SimpleNamespace(**named)))
    bench = Bench(replace(parse(["device=cpu", "dry=true"]), scale="full"), "linear")
    bench.ceilings["copy"], bench.clock = 1e9, clock.CLOCKS["dry"]
    return bench


ROWS = {
    "lightning": lambda bench: linear.lightning(bench, "lightning", SHAPE),
    "a decay per channel": lambda bench: linear.channels(bench, SHAPE),
    delta.GATED: lambda bench: delta.beside_fla(bench, delta.GATED, SHAPE),
    delta.KDA: lambda bench: delta.beside_fla(bench, delta.KDA, SHAPE),
}


@pytest.mark.parametrize("name", ROWS)
def test_flash_linear_attention_where_it_is_installed(bench, name):
    ROWS[name](bench).run(bench)
    assert not bench.found.errors
    found = {(r.implementation, r.direction, r.metric): r.value for r in bench.found.records}
    assert found[FLA, FORWARD, "rms of the difference"] < 1e-5
    assert {("ours", way, f"over {FLA}") for way in (FORWARD, BOTH)} <= found.keys()


@pytest.mark.parametrize("name", [linear.RULE, *delta.RULES])
def test_a_step_of_flash_linear_attention(bench, name):
    shape = Shape(3, 1, 2, 16)
    case = linear.step(name, shape) if name == linear.RULE else delta.step(name, shape)
    (arrays,) = case.draw(CPU, torch.float32)
    state = arrays["state"].normal_().clone()
    found = peers.fla_peer(bench, delta.RULES.get(name, name), step=True)[FLA](**arrays)
    ours = case.function(**arrays, backend="torch")
    torch.testing.assert_close(found[:, 0], ours)
    assert not torch.equal(state, arrays["state"])


def test_the_rules_of_transformers_compute_the_same():
    bench = Bench(replace(parse(["device=cpu"]), scale="quick"), "linear")
    shape = Shape(1, 512, 1, 16)
    case = across.training_case(shape)
    (arrays,) = case.draw(CPU, torch.float32)
    forms = across.rules(bench, shape)
    given = {name: x for name, x in arrays.items() if name != "upstream"}
    for rule in delta.RULES:
        theirs = forms[f"transformers, {rule}"](**given)
        torch.testing.assert_close(theirs * 4, forms[rule](**given), rtol=1e-4, atol=1e-5)
    assert not bench.found.errors and not bench.found.notes
    long = across.rules(bench, shape._replace(length=8192)).keys()
    assert f"transformers, {delta.GATED}" in long and f"transformers, {delta.KDA}" not in long


@pytest.mark.parametrize("direction", [BOTH, BACKWARD])
def test_what_is_timed_has_the_gradients_of_all_that_it_is_given(direction):
    case = delta.attention(delta.KDA, Shape(1, 40, 2, 16))
    sets = case.draw(CPU, torch.float32)
    run = case.passes(lambda **x: case.function(**x, backend="torch"), sets, direction)
    for found in (run(0), run(1)):
        assert [x.shape for x in found] == [sets[0][name].shape for name in ("q", "k", "v", "log_decay", "beta")]
        assert all(x.abs().sum() > 0 for x in found)


def test_the_convolution_of_pytorch_computes_the_same():
    case = convolution.convolution(Shape(2, 30, 2, 16))
    (arrays,) = case.draw(CPU, torch.float32)
    x, weight = arrays["x"], arrays["weight"]
    torch.testing.assert_close(convolution.conv1d(x, weight), case.function(x=x, weight=weight, backend="reference"))
