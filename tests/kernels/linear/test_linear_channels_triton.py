"""Linear attention with a decay per channel in Triton's interpreter: the recurrence in fp64 is the oracle."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.delta_oracle import Case, assert_contract, make_case, recurrence
from tests.kernels.linear_oracle import assert_all_close, make_documents
from tests.tiers import in_ci
from zoo_kernels import NormalizedState, linear_attention, linear_attention_step
from zoo_kernels.launch import ARCHITECTURES, INTERPRETER, Config, record
from zoo_kernels.linear import torch_ops as custom
from zoo_kernels.linear.triton.configs import TABLE
from zoo_kernels.tools.aot import compile_keys

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned", "short_segments")

FP32, HALF = torch.float32, torch.float16
TILES = {
    "channel_pairs": {"BLOCK": 16, "TILE": 16},
    "channel_states": {"TILE_Y": 16, "TILE": 16},
    "read": {"TILE_X": 16, "TILE": 16},
    "pair_gradients": {"BLOCK": 16, "TILE": 16},
    "channel_gradients": {"TILE": 16, "TILE_Z": 16},
}


@pytest.fixture
def short_segments(monkeypatch):
    """Segments of one chunk of 64 tokens."""
    monkeypatch.setattr(custom, "SHORTEST", 64)


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles for heads wider than 16."""
    for name, made in TILES.items():
        rows = {key: Config(made, 4, 1) for key in TABLE[name][INTERPRETER]}
        monkeypatch.setitem(TABLE, name, TABLE[name] | {INTERPRETER: rows})


def run(x, **options):
    given = {n: a for n, a in x.items() if n != "state"}
    return linear_attention(**given, initial_state=x["state"], return_state=True, backend="triton", **options)


class LinearCase(Case):
    """A case that is measured by linear attention."""

    def measured(self, dtype=FP32):
        x = self.leaves(dtype)
        return self.gradients(x, *run(x, **self.options))


def channels(length, strength=1.0, documents=None, **sizes):
    """A case of one row and one head, which the interpreter has time for."""
    sizes = {"batch": 1, "heads": 1, "width": 6, "value": 10} | sizes
    made = make_case(length, "plain", "channel", strength=strength, **sizes)
    options = {} if documents is None else {"documents": make_documents(documents)}
    return LinearCase(made.inputs, made.grad_output, made.grad_state, options)


def close(case, tolerance=2e-6):
    assert_all_close(case.measured(), case.expected(), tolerance)


@pytest.mark.parametrize(
    ("length", "strength", "documents"),
    [
        (17, 5.0, None),
        (18, 1000.0, [[1, 1, 13, 1, 2]]),
        *in_ci(
            *((n, 1.0, None) for n in (1, 2, 15, 16, 63, 64, 65, 129)),
            (65, 0.0, None),
            (65, 1000.0, None),
            (65, 0.0, [[1, 62, 1, 1]]),
            (200, 5.0, [[1, 62, 1, 2, 64, 1, 69]]),
        ),
    ],
)
def test_equals_the_recurrence_with_gradients(length, strength, documents):
    close(channels(length, strength, documents))


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 5.0, 1000.0])
@pytest.mark.parametrize("dtype", [FP32, HALF], ids=["fp32", "fp16"])
@pytest.mark.parametrize("length", [17, 65])
def test_error_is_at_most_twice_that_of_plain_code(length, dtype, strength):
    assert_contract(channels(length, strength, heads=2, width=16, value=24), dtype)


def test_half_precision():
    case = channels(17, 5.0, width=16, value=16)
    case.inputs = {n: x.half().double() for n, x in case.inputs.items()}
    assert_all_close(case.measured(HALF), case.expected(), 2e-3)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(("width", "value"), [(20, 40), *in_ci((1, 1), (64, 64), (60, 36), (16, 33))])
def test_any_width(width, value):
    close(channels(18, width=width, value=value), 4e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "value"), [(96, 64), (128, 128), (192, 96), (256, 256), (250, 16)])
def test_wide_heads_in_half_precision(width, value):
    case = channels(18, width=width, value=value)
    case.inputs = {n: x.half().double() for n, x in case.inputs.items()}
    assert_all_close(case.measured(HALF), case.expected(), 4e-3)


@pytest.mark.slow
def test_rows_and_heads_are_apart():
    close(channels(70, 1.0, [[30, 1, 39], [70]], batch=2, heads=3))


@pytest.mark.slow
@pytest.mark.parametrize("documents", [None, [[100, 157]]])
def test_segments_of_several_chunks(documents, monkeypatch):
    monkeypatch.setattr(custom, "SHORTEST", 128)
    close(channels(257, 1.0, documents))


def test_what_comes_later_changes_nothing_not_one_bit():
    case = channels(20, 5.0)
    for cut in (7, 16):
        later = Case({n: x.clone() for n, x in case.inputs.items()}, None, None)
        for name in ("q", "k", "v", "log_decay"):
            later.inputs[name][:, cut:] = -300
        outputs = [run(x.leaves(FP32))[0] for x in (case, later)]
        assert torch.equal(outputs[0][:, :cut], outputs[1][:, :cut])


def test_other_documents_change_nothing_not_one_bit():
    case, ids = channels(20, 1.0), make_documents([[9, 11]])
    other = Case({n: x.clone() for n, x in case.inputs.items()}, None, None)
    for name in ("q", "k", "v", "state"):
        other.inputs[name][:, :9] = 1e6
    other.inputs["log_decay"][:, :10] = -3
    outputs = [run(x.leaves(FP32), documents=ids) for x in (case, other)]
    assert torch.equal(outputs[0][0][:, 9:], outputs[1][0][:, 9:])
    assert torch.equal(outputs[0][1], outputs[1][1])


def test_a_decay_of_minus_infinity_starts_afresh_and_a_positive_one_counts_as_0():
    case = channels(18, 0.0)
    case.inputs["log_decay"][:, 5] = -torch.inf
    case.inputs["log_decay"][:, 16] = -torch.inf
    x = case.leaves(FP32)
    got = case.gradients(x, *run(x))
    assert all(torch.isfinite(g).all() for g in got.values())
    case.options = {"documents": make_documents([[5, 11, 2]])}
    case.inputs["log_decay"] = torch.zeros_like(case.inputs["log_decay"])
    want = case.expected()
    got.pop("grad log_decay"), want.pop("grad log_decay")
    assert_all_close(got, want, 2e-6)
    q, k, v, state = (case.inputs[n].float() for n in ("q", "k", "v", "state"))
    above = torch.full_like(q, 0.5).requires_grad_()
    how = custom.linear_forward.op(q, k, v, above, state, None, 1.0, "auto", False, "triton")
    flat = linear_attention(q, k, v, torch.zeros_like(q), initial_state=state, backend="triton")[0]
    assert torch.equal(how[0], flat)
    assert not torch.autograd.grad(how[0].sum(), above)[0].any()


def test_strided_inputs_and_broadcast_gradients():
    case, results = channels(17, heads=2), []
    for strided in (False, True):
        x = case.leaves(FP32)
        view = dict(x)
        if strided:
            view |= {n: x[n].transpose(1, 2).contiguous().transpose(1, 2) for n in ("q", "k", "log_decay")}
            view["v"] = torch.nn.functional.pad(x["v"], (1, 2))[..., 1:-2]
            view["state"] = x["state"].mT.contiguous().mT
        o, s = run(view)
        (o.sum() + s.sum()).backward()  # the gradients arrive with stride 0
        results.append({n: t.grad for n, t in x.items()})
    assert_all_close(results[1], results[0], 1e-6)


@pytest.mark.parametrize("cut", [16, *in_ci(1, 64)])
def test_splitting_with_the_state_handed_over(cut):
    case = channels(cut + 2)
    x, outputs = case.leaves(FP32), []
    state = x["state"]
    for span in (slice(0, cut), slice(cut, None)):
        o, state = run({n: x[n][:, span] for n in ("q", "k", "v", "log_decay")} | {"state": state})
        outputs.append(o)
    assert_all_close(case.gradients(x, torch.cat(outputs, 1), state), case.expected(), 2e-6)


@pytest.mark.slow
def test_normalized_equals_the_recurrence():
    case, z = channels(20), torch.rand(1, 1, 6, dtype=torch.float64)
    x, below = case.leaves(FP32), z.float()
    q, k = x["q"].square(), x["k"].square() + 0.1
    o, last = linear_attention(
        q, k, x["v"], x["log_decay"], normalize=True, initial_state=NormalizedState(x["state"], below),
        return_state=True, backend="triton",
    )  # fmt: skip
    got = case.gradients(x, o, last.s + 0.5 * last.z[..., None])
    x = case.leaves()
    q, k = x["q"].square(), x["k"].square() + 0.1
    ones = torch.cat([x["v"], torch.ones_like(x["v"][..., :1])], -1)
    both, last = recurrence(q, k, ones, x["log_decay"], torch.cat([x["state"], z[..., None]], -1))
    want = case.gradients(x, both[..., :-1] / both[..., -1:], last[..., :-1] + 0.5 * last[..., -1:])
    assert_all_close(got, want, 2e-5)


def test_wide_outputs_exceed_half_precision():
    case = channels(17, 1.0, width=16, value=16)
    x = case.leaves(HALF)
    o, _ = run(x | {"v": x["v"] * 1e3}, wide=True, scale=1e3)
    assert o.dtype == FP32 and o.abs().max() > 65504 and torch.isfinite(o).all()
    grads = torch.autograd.grad((o * 1e-7).sum(), [x[n] for n in ("q", "k", "v", "log_decay")])
    d = case.leaves(torch.float64)
    wanted = {n: (a.half().double() if n in "qkv" else a.float().double()) for n, a in d.items()}
    want, _ = recurrence(wanted["q"], wanted["k"], wanted["v"] * 1e3, wanted["log_decay"], wanted["state"])
    exact = torch.autograd.grad((want * 1e3 * 1e-7).sum(), [d[n] for n in ("q", "k", "v", "log_decay")])
    for got, right in zip(grads, exact):
        assert (got.double() - right).abs().max() <= 5e-3 * right.abs().max()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [FP32, HALF], ids=["fp32", "fp16"])
def test_steps_update_the_state_in_place(normalize, dtype):
    case = make_case(4, "plain", "channel", heads=3, width=20, value=40)
    x = {n: a.to(dtype if n in "qkv" else FP32).double() for n, a in case.inputs.items()}
    q, k = x["q"].abs(), x["k"].abs()
    v, state, z = x["v"], x["state"].float(), torch.rand(2, 3, 20)
    both = torch.cat([v, torch.ones_like(v[..., :1])], -1)
    start = torch.cat([state.double(), z.double()[..., None]], -1)
    want, last = recurrence(q, k, both, x["log_decay"], start, scale=0.5)
    want = 0.5 * want[..., :-1] / want[..., -1:] if normalize else want[..., :-1]
    given = NormalizedState(state, z) if normalize else state
    for t in range(4):
        arrays = (a[:, t].to(dtype) for a in (q, k, v))
        o = linear_attention_step(
            *arrays, x["log_decay"][:, t].float(), given, normalize=normalize, scale=0.5, backend="triton"
        )  # fmt: skip
        assert o.dtype == dtype
        torch.testing.assert_close(o.double(), want[:, t], rtol=4 * torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(state.double(), last[..., :-1], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_opcheck_and_compilation():
    x = channels(17).leaves(FP32)
    given = [x[n] for n in ("q", "k", "v", "log_decay", "state")]
    ids = make_documents([[9, 8]])
    torch.library.opcheck(custom.linear_forward.op, (*given, ids, 0.5, "auto", False, "triton"))
    saved = [a.detach() for a in given]
    o, last, starts = custom.linear_forward.op(*saved, ids, 0.5, "auto", False, "triton")
    upstream = starts, torch.randn_like(o), torch.randn_like(last), True
    torch.library.opcheck(custom.linear_backward.op, (*saved, ids, 0.5, "auto", False, "triton", *upstream))
    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), run(x))


def launches(batch, length, architecture, documents, width=64):
    """What a training pass and a step would start on a GPU; nothing runs."""
    q = torch.zeros(batch, length, 2, width, dtype=torch.bfloat16, requires_grad=True)
    log_decay, ids = torch.zeros(batch, length, 2, width), torch.zeros(batch, length, dtype=torch.long)
    with record(architecture) as found:
        o, _ = linear_attention(
            q, q, q, log_decay.requires_grad_(), documents=ids if documents else None, backend="triton"
        )
        o.sum().backward()
        row = q.detach()[:, 0]
        state = torch.zeros(batch, 2, width, width)
        linear_attention_step(row, row, row, log_decay.detach()[:, 0], state, backend="triton")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("documents", [False, True])
def test_batch_and_length_compile_nothing_new(documents, architecture, monkeypatch):
    monkeypatch.setattr(custom, "SHORTEST", 512)
    shapes = [(1, 4097), (1, 3001), (2, 2048), (3, 64), (16, 1)]
    keys = [compile_keys(launches(b, t, architecture, documents), architecture) for b, t in shapes]
    every = keys[0]
    assert {name: len(found) for name, found in every.items()} == {
        "pairs_kernel": 2,  # with decays and without
        "channel_states_kernel": 4,  # sums and states, of the state and of its gradient
        "combine_kernel": 2,
        "read_kernel": 2,
        "pair_gradients_kernel": 1,
        "channel_gradients_kernel": 1,
        "step_kernel": 1,
    }
    assert all(found <= every[name] for k in keys for name, found in k.items())
