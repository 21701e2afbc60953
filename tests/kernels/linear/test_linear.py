"""Linear attention: every backend and algorithm computes the recurrence, forward and backward, in fp64."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from tests.kernels.linear_oracle import DECAYS, Case, assert_all_close, decay, make_case, make_documents, recurrence
from tests.tiers import in_ci
from zoo_kernels import NormalizedState, chunks, linear_attention, linear_attention_step

pytestmark = pytest.mark.usefixtures("poisoned")

FORMS = [("torch", "auto"), ("torch", "parallel"), ("torch", "chunk"), ("torch", "scan"), ("reference", "auto")]
LENGTHS = (1, 2, 15, 63, 64, 65, 100, 127, 129)

every_form = pytest.mark.parametrize(("backend", "algorithm"), FORMS, ids=[f"{b}-{a}" for b, a in FORMS])


@cache
def solved(length: int, kind: str) -> tuple[Case, dict[str, torch.Tensor]]:
    case = make_case(length, kind)
    return case, case.expected()


@every_form
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", ["none", "alibi", "token"])
def test_equals_the_recurrence_at_any_length(length, kind, backend, algorithm):
    case, expected = solved(length, kind)
    assert_all_close(case.measured(backend=backend, algorithm=algorithm), expected)


@every_form
@pytest.mark.parametrize("kind", DECAYS)
def test_equals_the_recurrence_for_any_decay(kind, backend, algorithm):
    case, expected = solved(129, kind)
    assert_all_close(case.measured(backend=backend, algorithm=algorithm), expected)


@every_form
@pytest.mark.parametrize("kind", [*in_ci("alibi"), "token"])
def test_equals_the_recurrence_over_a_thousand_tokens(kind, backend, algorithm):
    case, expected = solved(1000, kind)
    assert_all_close(case.measured(backend=backend, algorithm=algorithm), expected)


@every_form
@pytest.mark.parametrize(("width", "value"), [(16, 32), (32, 16), (60, 60), (80, 60), (128, 128), (256, 16), (1, 1)])
def test_equals_the_recurrence_at_any_width(width, value, backend, algorithm):
    case = make_case(66, "alibi", batch=1, heads=2, width=width, value=value)
    assert_all_close(case.measured(backend=backend, algorithm=algorithm), case.expected())


@pytest.mark.parametrize("length", [128, 129, 300])
def test_segments_of_one_chunk_equal_the_recurrence(length, monkeypatch):
    monkeypatch.setattr(chunks, "CACHE_ELEMENTS", 1)
    case, expected = solved(length, "soft_token")
    assert_all_close(case.measured(algorithm="chunk"), expected)


@every_form
@pytest.mark.parametrize("kind", ["none", "alibi", "token"])
def test_documents_of_any_length_equal_each_alone(kind, backend, algorithm):
    rows = [[1, 62, 1, 1, 64, 3, 128, 1], [130, 1, 63, 64, 1, 1, 1]]
    case = make_case(261, kind)
    case.documents = make_documents(rows)
    packed = case.measured(backend=backend, algorithm=algorithm)
    assert_all_close(packed, case.expected())
    for row, lengths in enumerate(rows):
        start = 0
        for i, n in enumerate(lengths):
            span, last = slice(start, start + n), i == len(lengths) - 1
            inputs = {name: x if x is None else x[row : row + 1] for name, x in case.inputs.items()}
            inputs |= {n: inputs[n][:, span] for n in ("q", "k", "v", *(["log_decay"] if kind == "token" else []))}
            inputs["log_decay"] = inputs["log_decay"] if kind == "token" else case.inputs["log_decay"]
            inputs["state"] = inputs["state"] if i == 0 else torch.zeros_like(inputs["state"])
            grad_state = case.grad_state[row : row + 1] * last
            alone = Case(inputs, case.grad_output[row : row + 1, span], grad_state)
            alone = alone.measured(backend=backend, algorithm=algorithm)
            for name in ("output", "grad q", "grad k", "grad v", *(["grad log_decay"] if kind == "token" else [])):
                torch.testing.assert_close(packed[name][row : row + 1, span], alone[name], rtol=1e-10, atol=1e-10)
            if last:
                torch.testing.assert_close(packed["final"][row : row + 1], alone["final"], rtol=1e-10, atol=1e-10)
            if i == 0:
                torch.testing.assert_close(packed["grad state"][row : row + 1], alone["grad state"])
            start += n


@every_form
def test_one_document_equals_no_documents(backend, algorithm):
    case, expected = solved(100, "alibi")
    with_ids = Case(case.inputs, case.grad_output, case.grad_state, torch.full((2, 100), 5))
    assert_all_close(with_ids.measured(backend=backend, algorithm=algorithm), expected)


@every_form
@pytest.mark.parametrize("kind", ["none", "token"])
@pytest.mark.parametrize("documents", [*in_ci(None), [[70, 1, 30, 28]] * 2])
def test_normalized_equals_the_recurrence(kind, documents, backend, algorithm):
    case = make_case(129, kind)
    case.documents = None if documents is None else make_documents(documents)
    results = []
    for ours in (False, True):
        x = case.leaves()
        z = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        q, k = x["q"].square(), x["k"].square() + 0.1  # positive, as a feature map gives: den stays away from 0
        z0 = z.square()
        if ours:
            o, state = linear_attention(
                q, k, x["v"], x["log_decay"], normalize=True, initial_state=NormalizedState(x["state"], z0),
                return_state=True, documents=case.documents, backend=backend, algorithm=algorithm,
            )  # fmt: skip
            assert isinstance(state, NormalizedState)
            s, last = state.s, state.z
        else:
            o, s, last = recurrence(q, k, x["v"], x["log_decay"], x["state"], case.documents, z0, normalize=True)
        results.append(case.gradients(x | {"z": z}, o, s + last[..., None] * 0.5) | {"z": last.detach()})
    assert_all_close(results[1], results[0])


@every_form
@pytest.mark.parametrize(("numerator", "den"), [(0.0, 1e-3), (1e-5, 1e-3), (-1e-5, -1e-3), (-2.0, -2.0), (3.0, 3.0)])
def test_small_denominators_keep_their_sign_and_at_least_eps(numerator, den, backend, algorithm):
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    o, _ = linear_attention(
        numerator * one, one, 5 * one, normalize=True, eps=1e-3, backend=backend, algorithm=algorithm
    )
    assert o.item() == pytest.approx(5 * numerator / den, rel=1e-12)


@every_form
def test_scale_multiplies_the_output_and_not_the_state(backend, algorithm):
    case = make_case(70, "alibi")
    q, k, v, log_decay = (case.inputs[n] for n in ("q", "k", "v", "log_decay"))
    options = {"return_state": True, "backend": backend, "algorithm": algorithm}
    plain, state = linear_attention(q, k, v, log_decay, **options)
    scaled, same = linear_attention(q, k, v, log_decay, scale=0.125, **options)
    torch.testing.assert_close(scaled, plain * 0.125, rtol=1e-14, atol=0)
    assert torch.equal(state, same)


@every_form
def test_strided_inputs_and_broadcast_gradients_equal_contiguous_ones(backend, algorithm):
    case = make_case(70, "token")
    results = []
    for strided in (False, True):
        x = case.leaves()
        view = {
            n: t.transpose(1, 2).contiguous().transpose(1, 2) if strided else t for n, t in x.items() if t.dim() == 4
        }
        view["log_decay"] = x["log_decay"].mT.contiguous().mT if strided else x["log_decay"]
        o, s = linear_attention(
            view["q"], view["k"], view["v"], view["log_decay"], initial_state=x["state"].mT.contiguous().mT,
            return_state=True, backend=backend, algorithm=algorithm,
        )  # fmt: skip
        if strided:
            (o.sum() + s.sum()).backward()  # the gradients arrive with stride 0
        else:
            torch.autograd.backward([o, s], [torch.ones_like(o), torch.ones_like(s)])
        results.append({n: t.grad for n, t in x.items()})
    assert_all_close(results[1], results[0], 1e-13)


@every_form
@pytest.mark.parametrize("kind", ["none", "alibi", "token"])
def test_splitting_anywhere_with_the_state_handed_over_equals_the_whole(kind, backend, algorithm):
    case, expected = solved(129, kind)
    for cut in (0, 1, 2, 63, 64, 65, 100, 128, 129):
        x = case.leaves()
        outputs, state = [], x["state"]
        for span in (slice(0, cut), slice(cut, None)):
            log_decay = x["log_decay"][:, span] if kind == "token" else x["log_decay"]
            o, state = linear_attention(
                x["q"][:, span], x["k"][:, span], x["v"][:, span], log_decay, initial_state=state,
                return_state=True, backend=backend, algorithm=algorithm,
            )  # fmt: skip
            outputs.append(o)
        assert_all_close(case.gradients(x, torch.cat(outputs, 1), state), expected)


@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("normalize", [False, True])
def test_steps_equal_the_whole_and_update_the_state_in_place(kind, normalize):
    torch.manual_seed(0)
    q, k, v = (torch.rand(2, 40, 3, d, dtype=torch.float64) for d in (8, 8, 5))
    log_decay = decay(kind, 2, 40, 3)
    s, z = torch.rand(2, 3, 8, 5, dtype=torch.float64), torch.rand(2, 3, 8, dtype=torch.float64)
    want, s_want, z_want = recurrence(q, k, v, log_decay, s, None, z, normalize)
    state = NormalizedState(s, z) if normalize else s
    for t in range(40):
        now = log_decay[:, t] if log_decay is not None and log_decay.dim() == 3 else log_decay
        o = linear_attention_step(q[:, t], k[:, t], v[:, t], now, state, normalize=normalize, scale=0.5)
        torch.testing.assert_close(o, 0.5 * want[:, t], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(s, s_want, rtol=1e-12, atol=1e-12)
    if normalize:
        torch.testing.assert_close(z, z_want, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@every_form
@pytest.mark.parametrize("per_token", [False, True])
def test_gradients_equal_finite_differences(per_token, backend, algorithm):
    case = make_case(7, "soft_token" if per_token else "alibi", batch=2, heads=2, width=3, value=2)
    case.documents = make_documents([[1, 4, 2], [5, 1, 1]])
    x = case.leaves()

    def run(q, k, v, log_decay, state):
        return linear_attention(
            q, k, v, log_decay, initial_state=state, return_state=True, documents=case.documents,
            backend=backend, algorithm=algorithm,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, tuple(x.values()))


def test_gradients_equal_finite_differences_across_chunks():
    case = make_case(67, "soft_token", batch=1, heads=1, width=2, value=2)
    case.inputs["log_decay"] = case.inputs["log_decay"] - 1e-4  # a step of the differences stays below 0
    x = case.leaves()
    assert torch.autograd.gradcheck(lambda d: linear_attention(*list(x.values())[:3], d)[0], (x["log_decay"],))


def test_the_reference_is_right_in_fp32_where_sums_of_decays_are_large():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2000, 1, 4) for _ in range(3))
    log_decay = torch.where(torch.arange(2000) < 1000, -20.0, -0.01)[None, :, None]  # steps of fp32: 0.002
    o, _ = linear_attention(q, k, v, log_decay, backend="reference")
    wanted = recurrence(q.double(), k.double(), v.double(), log_decay.double())[0]
    assert (o - wanted).abs().max() < 1e-5 * wanted.abs().max()
