"""No output depends on what comes later, on the length, on another row or on another document."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.cases import assert_equal, draw, every_mixer, every_name, make, with_slow_shapes
from tests.tiers import in_ci, named

pytestmark = pytest.mark.usefixtures("poisoned")

LENGTH = 133  # two chunks of 64 and a tail
PLACES = (0, 1, 62, 63, 64, 100, 128, 131)
MODES = {"eval": False, "train": True}
PACKED = [
    [[1, 5, 64, 1, 62]],
    [[133], [1, 132], [66, 66, 1]],
    [[1] * 5 + [128], [63, 1, 64, 5], [2, 3, 128]],
]


@every_mixer
@pytest.mark.parametrize("training", named(MODES, "eval"))
def test_a_future_outlier_changes_nothing(name, options, training):
    mixer = make(name, options).train(training)
    x = draw(1, LENGTH)
    want = mixer(x)
    for t in PLACES:
        changed = x.clone()
        changed[:, t + 1 :] += 1e4 * torch.randn(1, LENGTH - t - 1, x.shape[-1], dtype=x.dtype)
        got = mixer(changed)
        assert_equal(got[:, : t + 1], want[:, : t + 1], 1e-12)
        assert not torch.allclose(got[:, t + 1 :], want[:, t + 1 :])


@with_slow_shapes
@pytest.mark.parametrize("dtype", named({"fp32": torch.float32, "bf16": torch.bfloat16}, "bf16"))
def test_a_future_outlier_changes_nothing_in_low_precision(name, options, dtype):
    mixer = make(name, options).to(dtype)
    x = draw(1, LENGTH, dtype)
    want = mixer(x)
    for t in PLACES:
        changed = x.clone()
        changed[:, t + 1 :] *= 100
        assert torch.equal(mixer(changed)[:, : t + 1], want[:, : t + 1])


@every_mixer
@pytest.mark.parametrize("training", named(MODES, "train"))
def test_no_gradient_comes_from_the_future(name, options, training):
    mixer = make(name, options).train(training)
    x = draw(1, LENGTH).requires_grad_()
    y = mixer(x)
    for t in PLACES:
        (grad,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        assert not grad[:, t + 1 :].any()
        assert grad[:, t].any()


@every_mixer
def test_a_prefix_does_not_depend_on_the_length(name, options):
    mixer, x = make(name, options), draw(2, 135)
    want = mixer(x)
    for length in (1, 2, 63, 64, 65, 128):
        assert_equal(mixer(x[:, :length]), want[:, :length])


@every_mixer
def test_a_row_does_not_depend_on_the_batch(name, options):
    mixer, x = make(name, options), draw(3, 70)
    y = mixer(x)
    for row in range(3):
        assert_equal(mixer(x[row : row + 1]), y[row : row + 1])


@every_mixer
@pytest.mark.parametrize("rows", [*in_ci(*PACKED[:2]), PACKED[2]], ids=str)
def test_packed_documents_equal_each_alone(name, options, rows):
    mixer, x = make(name, options), draw(len(rows), LENGTH).requires_grad_()
    ids = [torch.cat([torch.full((n,), 5 * i % 7) for i, n in enumerate(lengths)]) for lengths in rows]
    packed = mixer(x, documents=torch.stack(ids))
    weight = torch.randn_like(packed)
    leaves = [x, *mixer.parameters()]
    grad, *of_weights = torch.autograd.grad((packed * weight).sum(), leaves)
    total = [torch.zeros_like(p) for p in mixer.parameters()]
    for row, lengths in enumerate(rows):
        start = 0
        for n in lengths:
            part = slice(row, row + 1), slice(start, start + n)
            alone = x[part].detach().requires_grad_()
            y = mixer(alone)
            assert_equal(packed[part], y)
            mine, *parts = torch.autograd.grad((y * weight[part]).sum(), [alone, *mixer.parameters()])
            assert_equal(grad[part], mine)
            total = [a + b for a, b in zip(total, parts)]
            start += n
    for got, want in zip(of_weights, total):
        assert_equal(got, want, 1e-9)


@every_mixer
def test_one_document_equals_no_documents(name, options):
    mixer, x = make(name, options), draw(2, 70)
    assert_equal(mixer(x, documents=torch.full((2, 70), 3)), mixer(x))


@every_name
def test_what_is_not_finite_in_a_document_reaches_no_other_row(name):
    mixer, x = make(name), draw(2, 70)
    documents = (torch.arange(70) >= 40).long().expand(2, -1)
    want, x = mixer(x, documents=documents), x.clone()
    x[0, 45] = torch.nan
    assert torch.equal(mixer(x, documents=documents)[1], want[1])
