"""Linear attention's Triton kernels, in the interpreter: the recurrence in fp64 is the oracle, forward and backward."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.linear_oracle import (
    Case,
    assert_all_close,
    assert_contract,
    decay,
    low_precision,
    make_case,
    make_documents,
    recurrence,
)
from tests.tiers import in_ci
from zoo_kernels import BackendError, NormalizedState, linear_attention, linear_attention_step
from zoo_kernels.launch import ARCHITECTURES, record
from zoo_kernels.linear import torch_ops as custom
from zoo_kernels.tools.aot import compile_keys

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned", "short_segments")

FP32 = torch.float32
ALGORITHMS = ("chunk", "auto", "scan", "parallel")
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
few_algorithms = pytest.mark.parametrize("algorithm", ["auto", *in_ci("chunk", "scan", "parallel")])


@pytest.fixture
def short_segments(monkeypatch):
    """Two levels at lengths that the interpreter can manage: segments of 64 tokens, chunks of 32."""
    monkeypatch.setattr(custom, "SHORTEST", 64)


@pytest.mark.parametrize("dtype", [FP32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("length", "kind", "algorithm"),
    [
        (65, "token", "auto"),  # a chunk of 64 and one token, in each algorithm
        (65, "paper", "scan"),
        *in_ci(
            (1, "alibi", "chunk"),
            (2, "token", "parallel"),
            (15, "paper", "auto"),
            (63, "soft_token", "scan"),
            (64, "strong", "auto"),
            (100, "soft_token", "parallel"),
            (100, "strong", "chunk"),
            (127, "alibi", "scan"),
            (129, "token", "chunk"),
            (129, "paper", "parallel"),
            (129, "alibi", "auto"),
        ),
    ],
)
def test_error_is_at_most_twice_that_of_plain_code(length, kind, algorithm, dtype):
    assert_contract(length, kind, dtype, backend="triton", algorithm=algorithm)


@pytest.mark.slow
def test_error_over_a_thousand_tokens():
    assert_contract(1000, "alibi", FP32, backend="triton", algorithm="chunk")


def close(case: Case, tolerance: float = 2e-5, **options) -> None:
    """Equal to the recurrence within fp32 rounding, for numbers around 1."""
    assert_all_close(case.measured(FP32, backend="triton", **options), case.expected(), tolerance)


@few_algorithms
@pytest.mark.parametrize("kind", ["none", "paper", "token", *in_ci("zero", "alibi", "strong", "soft_token")])
def test_every_decay(kind, algorithm):
    close(make_case(70, kind, batch=1, heads=2), algorithm=algorithm)


@few_algorithms
@pytest.mark.parametrize(("width", "value"), [(80, 60), (3, 256), *in_ci((16, 32), (60, 60), (128, 128), (256, 16))])
def test_any_width(width, value, algorithm):
    case = make_case(34, "token", batch=1, heads=1, width=width, value=value)
    if max(width, value) <= custom.LINEAR.widths[FP32]:
        close(case, 1e-4, algorithm=algorithm)
    else:
        case = low_precision(case, torch.float16)
        got = case.measured(torch.float16, backend="triton", algorithm=algorithm)
        assert_all_close(got, case.expected(), 1e-2)


@pytest.mark.parametrize("algorithm", ["parallel", *in_ci("auto", "chunk", "scan")])
@pytest.mark.parametrize("kind", ["token", *in_ci("none", "alibi")])
def test_documents(kind, algorithm):
    case = make_case(129, kind, batch=2, heads=1)
    case.documents = make_documents([[1, 31, 1, 1, 64, 3, 28], [130 - 33, 1, 31]])
    close(case, algorithm=algorithm)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["strong", *in_ci("paper")])
@pytest.mark.parametrize("documents", [*in_ci(None), [[90, 1, 166]]])
def test_a_segment_reads_only_what_its_decay_leaves(kind, documents, monkeypatch):
    """Segments of four chunks, of which strong decays need the nearest ones only."""
    monkeypatch.setattr(custom, "SHORTEST", 128)
    case = make_case(257, kind, batch=1, heads=3)
    case.documents = None if documents is None else make_documents(documents)
    close(case, algorithm="auto")


def test_the_widest_heads_have_a_normalizer_too():
    q, k, v = (torch.rand(1, 5, 2, 256, dtype=torch.float16) for _ in range(3))
    o, state = linear_attention(q, k, v, normalize=True, return_state=True, backend="triton")
    want, want_state = linear_attention(*(x.double() for x in (q, k, v)), normalize=True, return_state=True)
    torch.testing.assert_close(o.double(), want, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(state.z.double(), want_state.z, rtol=1e-6, atol=1e-6)
    assert state.s.shape == (1, 2, 256, 256)


@few_algorithms
def test_normalized(algorithm):
    case = make_case(66, "token", batch=1, heads=2)
    z0 = torch.rand(1, 2, 16, dtype=torch.float64)
    results = []
    for dtype in (FP32, torch.float64):
        x, z = case.leaves(dtype), z0.to(dtype)
        arrays = x["q"].square(), x["k"].square() + 0.1, x["v"], x["log_decay"]
        if dtype == FP32:
            o, final = linear_attention(
                *arrays, normalize=True, initial_state=NormalizedState(x["state"], z), return_state=True,
                algorithm=algorithm, backend="triton",
            )  # fmt: skip
            s, last = final.s, final.z
        else:
            o, s, last = recurrence(*arrays, x["state"], None, z, normalize=True)
        grads = torch.autograd.grad(o.sum() + last.sum(), list(x.values()))
        results.append(dict(zip(x, grads)) | {"o": o.detach(), "s": s.detach()})
    assert_all_close(*results, 5e-5)


@every_algorithm
@pytest.mark.parametrize("size", [*in_ci(1e-6, 1.0), 1e6])
def test_a_state_that_half_precision_cannot_hold_is_read(algorithm, size):
    """As a normalizer is after many tokens: each column of the state is read to within the rounding of its largest."""
    q, zero = torch.rand(1, 70, 2, 16).half(), torch.zeros(1, 70, 2, 16).half()
    state = size * torch.rand(1, 2, 16, 16)
    state[..., 3] *= 1e-3
    scale = 1e-3 if size > 1 else 1 / size if size < 1 else 1.0
    got, _ = linear_attention(
        q, zero, zero, initial_state=state, scale=scale, algorithm=algorithm, backend="triton"
    )  # fmt: skip
    want = scale * torch.einsum("bthd,bhde->bthe", q.double(), state.double())
    torch.testing.assert_close(got.double(), want, rtol=2e-3, atol=1e-7)


@few_algorithms
def test_strided_inputs_and_broadcast_gradients(algorithm):
    case = make_case(40, "token", batch=2, heads=2)
    results = []
    for strided in (False, True):
        x = case.leaves(FP32)
        view = dict(x)
        if strided:
            view |= {n: x[n].transpose(1, 2).contiguous().transpose(1, 2) for n in "qk"}
            view["v"] = torch.nn.functional.pad(x["v"], (1, 2))[..., 1:-2]
        o, s = linear_attention(
            *(view[n] for n in ("q", "k", "v", "log_decay")), initial_state=x["state"].mT.contiguous().mT,
            return_state=True, algorithm=algorithm, backend="triton",
        )  # fmt: skip
        (o.sum() + s.sum()).backward()  # the gradients arrive with stride 0
        results.append({n: t.grad for n, t in x.items()})
    assert_all_close(results[1], results[0], 1e-6)


@few_algorithms
@pytest.mark.parametrize("cut", [64, *in_ci(1, 69)])
def test_splitting_with_the_state_handed_over(cut, algorithm):
    case = make_case(70, "alibi", batch=1, heads=1)
    x, outputs = case.leaves(FP32), []
    state = x["state"]
    for span in (slice(0, cut), slice(cut, None)):
        o, state = linear_attention(
            x["q"][:, span], x["k"][:, span], x["v"][:, span], x["log_decay"], initial_state=state,
            return_state=True, algorithm=algorithm, backend="triton",
        )  # fmt: skip
        outputs.append(o)
    assert_all_close(case.gradients(x, torch.cat(outputs, 1), state), case.expected(), 2e-5)


@pytest.mark.parametrize("kind", ["token", *in_ci("none", "alibi")])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", [FP32, torch.float16], ids=["fp32", "fp16"])
def test_steps_update_the_state_in_place(kind, normalize, dtype):
    q, k, v = (torch.rand(2, 5, 3, d, dtype=torch.float64).to(dtype).double() for d in (20, 20, 40))
    log_decay = decay(kind, 2, 5, 3)
    log_decay = None if log_decay is None else log_decay.float().double()
    s, z = torch.rand(2, 3, 20, 40), torch.rand(2, 3, 20)
    want, s_want, z_want = recurrence(q, k, v, log_decay, s.double(), None, z.double(), normalize)
    state = NormalizedState(s, z) if normalize else s
    for t in range(5):
        now = log_decay[:, t] if log_decay is not None and log_decay.dim() == 3 else log_decay
        arrays = (x[:, t].to(dtype) for x in (q, k, v))
        o = linear_attention_step(*arrays, now, state, normalize=normalize, scale=0.5, backend="triton")
        assert o.dtype == dtype
        torch.testing.assert_close(o.double(), 0.5 * want[:, t], rtol=4 * torch.finfo(dtype).eps, atol=1e-5)
    torch.testing.assert_close(s.double(), s_want, rtol=1e-5, atol=1e-5)
    if normalize:
        torch.testing.assert_close(z.double(), z_want, rtol=1e-5, atol=1e-5)


def test_a_state_that_the_step_cannot_take_is_refused():
    q, state = torch.rand(1, 2, 4), torch.rand(1, 2, 4, 4).mT
    with pytest.raises(BackendError, match="the kernel takes contiguous float32"):
        linear_attention_step(q, q, q, None, state, backend="triton")


def test_no_token_gives_no_output_and_keeps_the_state():
    q, state = torch.rand(1, 0, 2, 4), torch.rand(1, 2, 4, 4)
    o, final = linear_attention(q, q, q, initial_state=state, return_state=True, backend="triton")
    assert o.shape == q.shape
    assert torch.equal(final, state)


def launches(batch, length, architecture, algorithm, per_token, documents, width=64):
    """What a training pass and a step would start on a GPU; nothing runs."""
    q = torch.zeros(batch, length, 2, width, dtype=torch.bfloat16, requires_grad=True)
    log_decay = torch.zeros(batch, length, 2) if per_token else torch.zeros(2)
    ids = torch.zeros(batch, length, dtype=torch.long) if documents else None
    with record(architecture) as found:
        o, _ = linear_attention(
            q, q, q, log_decay.requires_grad_(), documents=ids, algorithm=algorithm, backend="triton"
        )
        o.sum().backward()
        row = q.detach()[:, 0]
        linear_attention_step(row, row, row, None, torch.zeros(batch, 2, width, width), backend="triton")
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("per_token", "documents"), [(False, False), (True, True)])
def test_batch_and_length_compile_nothing_new(algorithm, per_token, documents, architecture):
    flags = architecture, algorithm, per_token, documents
    keys = [compile_keys(launches(b, t, *flags), architecture) for b, t in [(2, 512), (3, 1001), (1, 4097), (16, 300)]]
    assert len(keys[0]) >= 2
    assert all(k == keys[0] for k in keys[1:])
