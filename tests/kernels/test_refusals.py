"""What the kernels refuse, on every backend alike: types, places, shapes, and derivatives that they do not have."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

from zoo_kernels import (
    NormalizedState,
    linear_attention,
    linear_attention_step,
    softmax_attention,
    softmax_attention_step,
)

BACKENDS = ("torch", "triton", "reference")
every_backend = pytest.mark.parametrize("backend", BACKENDS)
X, IDS = torch.zeros(2, 5, 2, 4), torch.zeros(2, 5, dtype=torch.long)
DECAY, STATE = torch.zeros(2, 5, 2), torch.zeros(2, 2, 4, 4)
OTHERS = (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)


def softmax(backend="auto", **change):
    return softmax_attention(**({"q": X, "k": X, "v": X} | change), backend=backend)


def linear(backend="auto", **change):
    return linear_attention(**({"q": X, "k": X, "v": X} | change), backend=backend)[0]


def softmax_step(backend="auto", **change):
    given = {"q": X[:, 0], "k_cache": X, "v_cache": X, "lengths": IDS[:, 0] + 1}
    return softmax_attention_step(**(given | change), backend=backend)


def linear_step(backend="auto", **change):
    given = {"q": X[:, 0], "k": X[:, 0], "v": X[:, 0], "log_decay": None, "state": STATE.clone()}
    return linear_attention_step(**(given | change), backend=backend)


ARRAYS = [
    *[(softmax, name, X) for name in "qkv"],
    (softmax, "sink_logits", X[0, 0, :, 0]),
    *[(linear, name, X) for name in "qkv"],
    (linear, "log_decay", DECAY),
    (linear, "initial_state", STATE),
    (softmax_step, "q", X[:, 0]),
    (softmax_step, "k_cache", X),
    (linear_step, "v", X[:, 0]),
    (linear_step, "log_decay", DECAY[:, 0]),
    (linear_step, "state", STATE),
]
every_array = pytest.mark.parametrize(
    ("call", "name", "array"), ARRAYS, ids=[f"{c.__name__} {n}" for c, n, _ in ARRAYS]
)


@every_backend
@every_array
def test_numbers_of_another_kind_are_refused(call, name, array, backend):
    for dtype in OTHERS:
        with pytest.raises(ValueError, match=rf"^{name} is {dtype}, expected float16"):
            call(backend, **{name: array.to(dtype)})


@every_backend
@every_array
def test_what_is_no_tensor_is_refused(call, name, array, backend):
    with pytest.raises(ValueError, match=rf"^{name} is a list, expected a torch.Tensor"):
        call(backend, **{name: array.tolist()})


@every_backend
@pytest.mark.parametrize(("call", "part"), [(softmax, X), (linear, X), (linear_step, X[:, 0])])
def test_arrays_of_different_types_are_refused(call, part, backend):
    for name in "qkv":
        with pytest.raises(ValueError, match=r"^q, k, v are of different types .*: convert them to one"):
            call(backend, **{name: part.half()})


@pytest.mark.parametrize(("call", "part"), [(softmax, X), (linear, X), (linear_step, X[:, 0])])
def test_arrays_on_different_devices_are_refused(call, part):
    with pytest.raises(ValueError, match=r"^q, k, v are on different devices \(cpu, meta, cpu\)"):
        call(k=part.to("meta"))


@every_backend
@pytest.mark.parametrize(
    ("call", "name", "array"),
    [(softmax, "documents", IDS), (linear, "documents", IDS), (softmax_step, "lengths", IDS[:, 0])],
)
def test_what_counts_must_be_integers(call, name, array, backend):
    for dtype in (torch.float32, torch.bool, torch.complex64):
        with pytest.raises(ValueError, match=rf"^{name} is {dtype}, expected integers"):
            call(backend, **{name: array.to(dtype)})
    with pytest.raises(ValueError, match=rf"^{name} is a list, expected a torch.Tensor of integers"):
        call(backend, **{name: array.tolist()})


@every_backend
@pytest.mark.parametrize(
    ("call", "change", "message"),
    [
        (softmax, {"window": 2.5}, "window=2.5: expected an integer"),
        (softmax, {"sink_tokens": True}, "sink_tokens=True: expected an integer"),
        (softmax, {"k": X[:1]}, r"expected q \(B, Tq, H, D\)"),
        (softmax, {"v": X[0]}, r"expected q \(B, Tq, H, D\)"),
        (softmax, {"sink_logits": torch.zeros(1)}, r"sink_logits has shape \(1,\), expected \(2,\)"),
        (softmax, dict.fromkeys("qk", X[..., :0]), "heads of 0 and values of 4 numbers"),
        (linear, dict.fromkeys("qk", X[..., :0]), "keys of 0 and values of 4 numbers"),
        (linear, {"v": X[..., :0]}, "keys of 4 and values of 0 numbers"),
        (linear, {"v": X[0]}, r"expected q, k \(B, T, H, D\)"),
        (linear, {"k": X[:, :, :1]}, r"expected q, k \(B, T, H, D\)"),
        (linear, {"eps": 0.0}, "eps=0.0: expected a finite number above 0"),
        (linear, {"eps": float("nan")}, "eps=nan"),
        (softmax_step, {"v_cache": X[..., 0]}, r"expected q \(B, H, D\)"),
        (linear_step, {"v": X}, r"expected q, k \(B, H, D\)"),
    ],
)
def test_what_does_not_fit_is_refused(call, change, message, backend):
    with pytest.raises(ValueError, match=message):
        call(backend, **change)


@every_backend
def test_a_state_that_grows_is_refused(backend):
    for call, shape in ((linear, (2,)), (linear, (2, 5, 2)), (linear_step, (2,)), (linear_step, (2, 2))):
        decay = torch.zeros(shape)
        call(backend, log_decay=decay)
        decay.view(-1)[-1] = 0.5
        with pytest.raises(ValueError, match=r"^log_decay goes up to 0.5, expected numbers <= 0"):
            call(backend, log_decay=decay)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "triton", "reference"])
def test_where_it_would_cut_a_graph_a_positive_decay_is_zero(backend):
    """As on a GPU, where asking would wait."""
    q, k, v = torch.randn(3, 2, 5, 2, 4)
    decay = (0.5 - torch.arange(20.0).view(2, 5, 2) % 3).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(linear_attention, backend="aot_eager", fullgraph=True)
    o, _ = compiled(q, k, v, decay, backend=backend)
    (grad,) = torch.autograd.grad(o.square().sum(), decay)
    clamped = decay.detach().clamp(max=0).requires_grad_()
    want, _ = linear_attention(q, k, v, clamped, backend="reference")
    torch.testing.assert_close(o, want)
    assert not grad[decay > 0].any()
    (of_clamped,) = torch.autograd.grad(want.square().sum(), clamped)
    torch.testing.assert_close(grad[decay <= 0], of_clamped[decay <= 0])


WHOLE = {
    "softmax": lambda x: softmax_attention(x, X, X),
    "linear": lambda x: linear_attention(x, X, X)[0],
    "softmax step": lambda x: softmax_attention_step(x[:, 0], X, X, IDS[:, 0] + 1),
    "linear step": lambda x: linear_attention_step(x[:, 0], X[:, 0], X[:, 0], None, STATE.clone()),
}
every_function = pytest.mark.parametrize("function", WHOLE.values(), ids=WHOLE.keys())
TRANSFORMS = {
    "jvp": lambda f: torch.func.jvp(f, (X,), (X,)),
    "jacfwd": lambda f: torch.func.jacfwd(f)(X),
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(X),
    "jacrev": lambda f: torch.func.jacrev(f)(X),
    "hessian": lambda f: torch.func.hessian(lambda x: f(x).sum())(X),
    "vmap": lambda f: torch.func.vmap(f)(X.expand(3, *X.shape)),
}


@every_function
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_transforms_of_functions_are_refused(transform, function):
    with pytest.raises(NotImplementedError, match=r"first derivatives by torch.autograd only"):
        transform(function)


@every_function
def test_dual_numbers_are_refused(function):
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X)
        with pytest.raises(NotImplementedError, match="none in forward mode"):
            function(dual)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["softmax", "linear"])
def test_compiled_forward_mode_is_refused(name):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: torch.func.jvp(WHOLE[name], (x,), (x,))[1], backend="eager")
    with pytest.raises(NotImplementedError, match="none in forward mode"):
        compiled(X)


@pytest.mark.parametrize("name", ["softmax", "linear"])
def test_tangents_of_a_gradient_are_refused(name):
    x = torch.randn(X.shape, requires_grad=True)
    o = WHOLE[name](x)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="none in forward mode"):
        torch.autograd.grad(o, x, forward_ad.make_dual(torch.ones_like(o), torch.ones_like(o)))


@pytest.mark.parametrize("name", ["softmax", "linear"])
def test_second_derivatives_are_refused(name):
    x = torch.randn(X.shape, requires_grad=True)
    (grad,) = torch.autograd.grad(WHOLE[name](x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="Trying to backward through attention_zoo"):
        torch.autograd.grad(grad.square().sum(), x)


def test_a_normalized_state_is_checked_part_by_part():
    with pytest.raises(ValueError, match=r"^initial_state\.z is torch.int64"):
        linear(initial_state=NormalizedState(STATE, STATE[..., 0].long()), normalize=True)
