"""The next-token loss equals PyTorch's cross-entropy and never holds all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from zoo.model import loss
from zoo.model.loss import next_token_loss

BATCH, LENGTH, WIDTH, VOCABULARY = 3, 50, 16, 211


def draw(dtype=torch.float32):
    hidden = torch.randn(BATCH, LENGTH, WIDTH, dtype=dtype, requires_grad=True)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(VOCABULARY, (BATCH, LENGTH))


@pytest.mark.parametrize("rows", [1024, 150, 64, 7])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_cross_entropy_in_value_and_gradients(rows, masked, monkeypatch):
    monkeypatch.setattr(loss, "ROWS", rows)
    hidden, weight, targets = draw()
    mask = torch.rand(BATCH, LENGTH) < 0.4 if masked else None
    total, losses = next_token_loss(hidden, weight, targets, mask)
    ignored = targets if mask is None else targets.masked_fill(~mask, -100)
    logits = (hidden @ weight.T).flatten(0, 1)
    want = F.cross_entropy(logits, ignored.flatten())
    torch.testing.assert_close(total, want)
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets.flatten(), reduction="none").view_as(targets))
    assert not losses.requires_grad
    for got, expected in zip(*(torch.autograd.grad(3 * x, (hidden, weight)) for x in (total, want))):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_either_input_alone():
    hidden, weight, targets = draw()
    both = torch.autograd.grad(next_token_loss(hidden, weight, targets)[0], (hidden, weight))
    of_hidden = torch.autograd.grad(next_token_loss(hidden, weight.detach(), targets)[0], hidden)
    of_weight = torch.autograd.grad(next_token_loss(hidden.detach(), weight, targets)[0], weight)
    assert torch.equal(both[0], of_hidden[0])
    assert torch.equal(both[1], of_weight[0])


def test_a_mask_of_nothing_gives_zero_and_no_gradient():
    hidden, weight, targets = draw()
    total, _ = next_token_loss(hidden, weight, targets, torch.zeros(BATCH, LENGTH, dtype=torch.bool))
    total.backward()
    assert total.item() == 0
    assert not hidden.grad.any()
    assert not weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_have_the_dtype_of_their_input(dtype):
    hidden, weight, targets = draw(dtype)
    total, losses = next_token_loss(hidden, weight, targets)
    total.backward()
    assert total.dtype == losses.dtype == torch.float32
    assert hidden.grad.dtype == weight.grad.dtype == dtype


class Largest(TorchDispatchMode):
    """Remembers the most elements that one tensor had."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, list | tuple) else [result]:
            if isinstance(made, torch.Tensor):
                self.elements = max(self.elements, made.numel())
        return result


def test_logits_of_the_whole_batch_never_exist(monkeypatch):
    monkeypatch.setattr(loss, "ROWS", 10)
    hidden, weight, targets = draw()
    with Largest() as seen:
        next_token_loss(hidden, weight, targets)[0].backward()
    assert seen.elements == VOCABULARY * WIDTH  # the gradient of the weight; the logits of 10 tokens are fewer


def test_evaluation_computes_no_gradients():
    hidden, weight, targets = draw()
    counts = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled), FlopCounterMode(display=False) as counter:
            next_token_loss(hidden.detach(), weight, targets)
        counts.append(counter.get_total_flops())
    one_product = 2 * BATCH * LENGTH * WIDTH * VOCABULARY
    assert counts == [3 * one_product, one_product]


def test_token_weights_scale_each_token_and_nothing_else():
    hidden, weight, targets = draw()
    factors = torch.rand(BATCH, LENGTH) * (torch.rand(BATCH, LENGTH) < 0.5)
    total, losses = next_token_loss(hidden, weight, targets, token_weights=factors)
    want = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none") * factors.flatten()
    torch.testing.assert_close(total, want.mean())
    for got, expected in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in (total, want.mean()))):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
    ones = next_token_loss(hidden, weight, targets, token_weights=torch.ones(BATCH, LENGTH))
    torch.testing.assert_close(ones, next_token_loss(hidden, weight, targets))
    torch.testing.assert_close(losses, ones[1])


def test_answers_of_other_rows_do_not_change_what_a_row_of_text_teaches():
    hidden, weight, targets = draw()
    gradients = []
    for answers, value in ((1, 8.0), (40, 8.0), (0, 0.0)):
        factors = torch.ones(BATCH, LENGTH)
        factors[1:] = 0
        factors[1:, :answers] = value
        total, _ = next_token_loss(hidden, weight, targets, token_weights=factors)
        gradients.append(torch.autograd.grad(total, hidden)[0][0])
    assert gradients[0].any()
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


def test_weighted_micro_batches_add_up_to_their_batch():
    hidden, weight, targets = draw()
    factors = torch.rand(BATCH, LENGTH)
    whole = torch.autograd.grad(next_token_loss(hidden, weight, targets, token_weights=factors)[0], weight)[0]
    parts = [
        next_token_loss(hidden[i : i + 1], weight, targets[i : i + 1], token_weights=factors[i : i + 1])[0]
        for i in range(BATCH)
    ]
    torch.testing.assert_close(torch.autograd.grad(sum(parts) / BATCH, weight)[0], whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_default_dtype_other_than_fp32_as_in_true_precisions_is_taken(dtype, monkeypatch):
    hidden, weight = torch.randn(2, 3, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype)
    targets = torch.randint(5, (2, 3))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        mean, losses = next_token_loss(hidden, weight, targets)
    finally:
        torch.set_default_dtype(before)
    assert mean.item() == pytest.approx(losses.mean().item(), rel=1e-4) and losses.dtype == torch.float32
