"""Delta attention as custom ops: registration, compilation, FLOPs, what is kept, and arguments that are refused."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.delta_oracle import DECAYS, RULES, assert_contract, blocks, make_case, needed_flops, run
from tests.tiers import in_ci
from zoo_kernels import BackendError, delta_attention, delta_attention_step, linear_attention
from zoo_kernels.delta import torch_ops as custom
from zoo_kernels.delta.arguments import DeltaArguments, DeltaToken, DeltaUpstream

every_rule = pytest.mark.parametrize("rule", RULES)
every_decay = pytest.mark.parametrize("decay", DECAYS)
FEW = [("beta", "token"), ("general", "channel"), ("plain", "none")]  # each rule, with each number of decays
REST = [(rule, decay) for rule in RULES for decay in DECAYS if (rule, decay) not in FEW]
few_arguments = pytest.mark.parametrize(("rule", "decay"), [*FEW, *in_ci(*REST)])
every_backend = pytest.mark.parametrize("backend", ["torch", "reference"])


def arguments(rule, decay, documents=True, length=40, fold=2):
    x = make_case(length, rule, decay, fold=fold).leaves(torch.float32)
    ids = (torch.arange(length) >= length // 3).long().expand(2, -1) if documents else None
    x = dict.fromkeys(("beta", "read", "erase")) | x
    return DeltaArguments(**x, documents=ids, scale=0.5, backend="torch")


@few_arguments
@pytest.mark.parametrize("documents", [*in_ci(False), True])
def test_opcheck(documents, rule, decay):
    given = arguments(rule, decay, documents)
    torch.library.opcheck(custom.delta_forward_op.op, tuple(given))
    saved = DeltaArguments(*(x.detach() if isinstance(x, torch.Tensor) else x for x in given))
    output, final, starts = custom.delta_forward_op(saved)
    upstream = DeltaUpstream(starts, torch.randn_like(output), torch.randn_like(final), decay != "none")
    torch.library.opcheck(custom.delta_backward_op.op, (*saved, *upstream))


@few_arguments
def test_opcheck_of_a_step(rule, decay):
    x = arguments(rule, decay)._asdict()
    token = {n: a.detach()[:, 0] if isinstance(a, torch.Tensor) and a.dim() > 2 else a for n, a in x.items()}
    given = DeltaToken(**{n: token[n] for n in DeltaToken._fields} | {"state": x["state"].detach()})
    decays = None if given.log_decay is None else given.log_decay.detach()
    torch.library.opcheck(custom.delta_step_op.op, tuple(given._replace(log_decay=decays)))


@pytest.mark.parametrize(
    ("rule", "decay", "backend"),
    [*((rule, decay, "torch") for rule in RULES for decay in DECAYS), ("general", "channel", "reference")],
)
def test_compiles_without_a_break_and_gives_the_same(rule, decay, backend):
    torch._dynamo.reset()
    length = 40 if backend == "torch" else 3  # the loop of the reference is traced token by token
    case, results = make_case(length, rule, decay), []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=False)):
        x = case.leaves()
        results.append(case.gradients(x, *function(x, backend=backend)))
    for name, want in results[0].items():
        torch.testing.assert_close(results[1][name], want, rtol=1e-12, atol=1e-12)


def test_compiles_for_any_length():
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (40, 70, 33):
        case = make_case(length, "beta", "channel")
        x = case.leaves()
        torch.testing.assert_close(compiled(x), run(x), rtol=1e-12, atol=1e-12)


def test_flops_of_the_delta_rule_are_those_of_its_products():
    """Written out for two chunks of 32: products of readers and writers, systems, what they solve, states, outputs."""
    x = make_case(64, "beta", "token", batch=1, heads=1, width=8, value=6).leaves()
    with FlopCounterMode(display=False) as counter:
        o, _ = run(x)
    square, state = 32 * 32, 32 * 8 * 6
    forward = 2 * square * 8 + 32**3 // 3 + square * 6 + 2 * state + state + square * 6
    assert counter.get_total_flops() == 2 * 2 * forward
    with FlopCounterMode(display=False) as counter:
        o.sum().backward()
    again = 2 * square * 8 + 32**3 // 3 + square * 6 + 2 * state
    assert counter.get_total_flops() == 2 * 2 * (again + 2 * 2 * square * 8 + 6 * state + 5 * square * 6)


@every_rule
@every_decay
def test_flops_needed_are_those_of_lower_triangles(rule, decay):
    given = arguments(rule, decay, length=64, fold=1)
    with FlopCounterMode(display=False) as counter:
        custom.delta_forward_op(given)
    readers, writers = (1 if rule == "plain" else 2), (2 if rule == "general" else 1)
    lower, below = 32 * 33 // 2, 32 * 31 // 2
    pairs = writers * 6 * (lower + (readers - 1) * below)
    if decay == "channel":
        pairs = writers * readers * 6 * below  # a query and its own token's key are no product of matrices
    system = 32**3 // 3 + writers * lower * 10 if readers == 2 else 0
    chunk = pairs + system + (readers + writers) * 32 * 6 * 10 + writers * lower * 10
    assert needed_flops(counter.get_total_flops(), [given]) == 2 * 2 * 2 * 2 * chunk


@pytest.mark.parametrize(("rule", "readers"), [("plain", 1), ("beta", 2), ("general", 2)])
def test_flops_of_a_step(rule, readers):
    x = make_case(1, rule, "token").inputs
    given = {n: a[:, 0] if n != "state" else a for n, a in x.items()}
    with FlopCounterMode(display=False) as counter:
        delta_attention_step(**given)
    assert counter.get_total_flops() == 2 * readers * 2 * 2 * 6 * 10


def kept_bytes(function, *arrays):
    """Bytes of all storages that the backward pass of a call holds."""
    held = {}

    def pack(x):
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        function(*arrays)
    return sum(held.values())


@pytest.mark.parametrize(("batch", "width"), [(1, 64), (4, 64), (1, 128), (8, 32)])
@pytest.mark.parametrize("channels", [False, True])
def test_it_keeps_little_more_than_linear_attention(channels, batch, width):
    q, k, v = (torch.randn(batch, 1024, 8, width, requires_grad=True) for _ in range(3))
    decay = -torch.rand(*((batch, 1024, 8, width) if channels else (batch, 1024, 8))).requires_grad_()
    beta = torch.rand(batch, 1024, 8, requires_grad=True)
    ours = kept_bytes(lambda *x: delta_attention(*x[:4], beta=x[4]), q, k, v, decay, beta)
    theirs = kept_bytes(linear_attention, q, k, v, decay)
    assert ours <= 1.3 * theirs


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_output_has_the_dtype_of_q_and_the_state_is_fp32_or_better(dtype, backend):
    x = make_case(40, "beta", "channel").leaves(dtype)
    o, state = run(x, backend=backend)
    assert o.dtype == dtype and state.dtype == torch.promote_types(dtype, torch.float32)
    assert [g.dtype for g in torch.autograd.grad(o.sum(), [x["q"], x["beta"]])] == [dtype, dtype]


@every_rule
@pytest.mark.parametrize("decay", ["token", "channel"])
@pytest.mark.parametrize("strength", [0.1, 20.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_error_is_at_most_twice_that_of_plain_code(dtype, strength, decay, rule):
    assert_contract(make_case(100, rule, decay, batch=1, strength=strength), dtype)


@every_rule
@pytest.mark.parametrize("decay", ["none", "token", "channel"])
@pytest.mark.parametrize("strength", [0.1, 20.0])
def test_fp32_is_within_a_few_units_in_the_last_place(strength, decay, rule):
    case = make_case(100, rule, decay, strength=strength)
    case.inputs = {n: None if x is None else x.float().double() for n, x in case.inputs.items()}
    expected = case.expected()
    for name, got in case.measured(torch.float32).items():
        for mine, want in zip(blocks(name, got.double()), blocks(name, expected[name])):
            assert (mine - want).abs().max() <= 1e-5 * want.abs().max().clamp(min=1e-2), name


@every_decay
def test_autocast_changes_nothing(decay):
    case, results = make_case(40, "beta", decay), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(case.measured(torch.float32))
    assert all(torch.equal(results[0][n], results[1][n]) for n in results[0])


def test_what_is_used_of_the_outputs_decides_what_is_needed():
    x = make_case(40, "beta", "channel").leaves()
    o, state = run(x)
    of_output, of_state = (torch.autograd.grad(y.sum(), list(x.values()), retain_graph=True) for y in (o, state))
    both = torch.autograd.grad(o.sum() + state.sum(), list(x.values()))
    torch.testing.assert_close([a + b for a, b in zip(of_output, of_state)], list(both))
    assert not of_state[0].any()  # q


def test_where_it_would_cut_a_graph_a_positive_decay_is_zero():
    """As on a GPU, where asking would wait."""
    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for decay in ("head", "token", "channel"):
        x = make_case(10, "beta", decay).leaves()
        x["log_decay"] = (
            (0.5 - torch.arange(x["log_decay"].numel()).view_as(x["log_decay"]) % 3).double().requires_grad_()
        )
        clamped = x["log_decay"].detach().clamp(max=0).requires_grad_()
        o, want = compiled(x)[0], run(x | {"log_decay": clamped}, backend="reference")[0]
        torch.testing.assert_close(o, want)
        (got,), (wanted,) = (
            torch.autograd.grad(y.square().sum(), g) for y, g in ((o, x["log_decay"]), (want, clamped))
        )
        assert not got[x["log_decay"] > 0].any()
        torch.testing.assert_close(got[x["log_decay"] <= 0], wanted[x["log_decay"] <= 0])


@pytest.mark.parametrize(("length", "batch", "heads"), [(0, 2, 2), (5, 0, 2), (5, 2, 0)])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_arrays_with_nothing_in_them(length, batch, heads, backend):
    q, k, v = (torch.randn(batch, length, heads, n, requires_grad=True) for n in (8, 8, 6))
    beta, state = (
        torch.rand(batch, length, heads, requires_grad=True),
        torch.randn(batch, heads, 8, 6, requires_grad=True),
    )
    for decay in (None, torch.zeros(heads, requires_grad=True), -torch.rand(q.shape).requires_grad_()):
        o, last = delta_attention(q, k, v, decay, beta=beta, initial_state=state, return_state=True, backend=backend)
        assert o.shape == v.shape and torch.equal(last, state)
        leaves = [q, k, v, beta, state, *([] if decay is None else [decay])]
        grads = torch.autograd.grad(o.sum() + last.sum(), leaves)
        assert [g.shape for g in grads] == [x.shape for x in leaves] and (grads[4] == 1).all()
    token = q.detach()[:, 0] if length else torch.zeros(batch, heads, 8)
    assert delta_attention_step(token, token, token, None, torch.zeros(batch, heads, 8, 8)).shape == token.shape


X, B, S = torch.zeros(2, 5, 3, 4), torch.zeros(2, 5, 3), torch.zeros(2, 3, 4, 4)
REFUSED = [
    ({"q": X[0]}, r"expected q, k \(B, T, H, D\) and v \(B, T, Hv, E\), got \(5, 3, 4\)"),
    ({"k": X[:, :4]}, r"got \(2, 5, 3, 4\), \(2, 4, 3, 4\)"),
    ({"v": X[:, :, :2]}, "v has 2 heads, expected a multiple of the 3 of q and k"),
    ({"v": X[:, :, :0]}, "v has 0 heads"),
    ({"v": X[..., :0]}, "keys of 4 and values of 0 numbers"),
    ({"v": X.half()}, "q, k, v are of different types"),
    ({"log_decay": torch.zeros(4)}, r"log_decay has shape \(4,\), expected \(3,\) or \(2, 5, 3\) or \(2, 5, 3, 4\)"),
    ({"log_decay": torch.ones(3)}, "log_decay goes up to 1, expected numbers <= 0"),
    ({"log_decay": B.long()}, "log_decay is torch.int64"),
    ({"log_decay": [0.0]}, "log_decay is a list"),
    ({"beta": B[:, :4]}, r"beta has shape \(2, 4, 3\), expected \(2, 5, 3\)"),
    ({"beta": B, "read": X, "erase": X}, "beta is the delta rule, .*: give beta, or read and erase"),
    ({"beta": B, "read": X}, "beta is the delta rule"),
    ({"read": X}, "read is given without erase: give both, or beta"),
    ({"erase": X}, "erase is given without read"),
    ({"read": X[..., :3], "erase": X}, r"read has shape \(2, 5, 3, 3\), expected \(2, 5, 3, 4\)"),
    ({"read": X, "erase": X[:, :, :1]}, r"erase has shape \(2, 5, 1, 4\)"),
    ({"documents": torch.zeros(2, 4)}, r"documents has shape \(2, 4\), expected \(2, 5\)"),
    ({"documents": torch.zeros(2, 5)}, "documents is torch.float32, expected integers"),
    ({"initial_state": S[..., :2]}, r"initial_state has shape .*expected \(2, 3, 4, 4\)"),
    ({"initial_state": [1]}, "initial_state is a list"),
    ({"scale": float("nan")}, "scale=nan: expected a finite number"),
    ({"k": X.to("meta")}, r"are on different devices \(cpu, meta, cpu\)"),
]


@every_backend
@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_arguments_that_do_not_fit_are_refused_in_one_line(change, message, backend):
    with pytest.raises(ValueError, match=message) as refused:
        delta_attention(**({"q": X, "k": X, "v": X} | change), backend=backend)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": X}, r"expected q, k \(B, H, D\) and v \(B, Hv, E\), got \(2, 5, 3, 4\)"),
        ({"log_decay": torch.zeros(1)}, r"log_decay has shape \(1,\), expected \(3,\) or \(2, 3\) or \(2, 3, 4\)"),
        ({"beta": B}, r"beta has shape \(2, 5, 3\), expected \(2, 3\)"),
        ({"state": S[:1]}, r"state has shape \(1, 3, 4, 4\), expected \(2, 3, 4, 4\)"),
        ({"state": S.long()}, "state is torch.int64"),
        ({"read": X[:, 0]}, "read is given without erase"),
    ],
)
def test_a_step_refuses_arguments_that_do_not_fit(change, message):
    one = X[:, 0]
    with pytest.raises(ValueError, match=message):
        delta_attention_step(**({"q": one, "k": one, "v": one, "log_decay": None, "state": S.clone()} | change))


def test_a_backend_that_does_not_exist_is_refused():
    with pytest.raises(BackendError, match="backend='cuda' does not exist for delta attention"):
        delta_attention(X, X, X, backend="cuda")


TRANSFORMS = {
    "jvp": lambda f: torch.func.jvp(f, (X,), (X,)),
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(X),
    "vmap": lambda f: torch.func.vmap(f)(X.expand(3, *X.shape)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_of_functions_are_refused(transform):
    for function in (
        lambda x: delta_attention(x, X, X, beta=B)[0],
        lambda x: delta_attention_step(x[:, 0], X[:, 0], X[:, 0], None, S.clone()),
    ):
        with pytest.raises(NotImplementedError, match=r"first derivatives by torch\.autograd only"):
            transform(function)


def test_nan_stays_in_its_row():
    x = torch.randn(2, 40, 2, 8)
    dirty = x.clone()
    dirty[0, 11] = torch.nan
    for options in ({}, {"log_decay": -x.abs()}):
        clean, other = (delta_attention(y, y / 8, y, beta=x[..., 0].sigmoid(), **options)[0][1] for y in (x, dirty))
        assert torch.equal(clean, other)
