"""Efficient attention: the prefix of its two softmaxes, against the form of the paper and at the ends of fp32."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.mixers.golden import assert_golden, golden_mixer
from zoo.mixers.parts.costs import CHUNK
from zoo.mixers.parts.features import capped_exp

OUTPUTS = {
    "prefix": [
        [1.747420727102, -1.896256676108, 1.915491859054, 0.039928893768,
         -0.810104234878, -2.869655025512, -0.783119869362, 2.509846885643],
        [1.095237982137, -1.638932235206, 1.62739067606, -0.407926159886,
         -0.501749857056, -1.745839697805, -0.322883365482, 1.814505948359],
    ],
    "scalar": [
        [1.80986535114, -2.043736151535, 2.057461459813, -0.013861128278,
         -0.816888332757, -3.020106979983, -0.669353874859, 2.506805662556],
        [1.139521077475, -1.627512424516, 1.614843310002, -0.370063047646,
         -0.528802173388, -1.794149368719, -0.329272862468, 1.826187873075],
    ],
}  # fmt: skip
FORMS = list(OUTPUTS)


def build(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return zoo.mixers.build("efficient", **({"width": 32, "heads": 4, "rope_theta": None} | options)).to(dtype)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def heads(mixer, x):
    """Queries, keys and values, ``(B, H, T, D)``."""
    return (m(x).unflatten(-1, (mixer.heads, -1)).transpose(1, 2) for m in (mixer.query, mixer.key, mixer.value))


def whole_sequence(mixer, x):
    """The paper's own form, in which every token sees all others."""
    q, k, v = heads(mixer, x)
    k = 30 * torch.tanh(k / 30)
    return mixer.out((q.softmax(-1) @ (k.softmax(-2).mT @ v)).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("form", FORMS)
def test_outputs_equal_those_computed_elsewhere(form):
    assert_golden(golden_mixer("efficient", form=form), OUTPUTS[form])


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
def test_the_last_row_is_that_of_the_paper(length):
    x = draw(2, length, 32)
    for form in FORMS:
        mixer = build(form=form)
        same = torch.allclose(mixer(x)[:, -1], whole_sequence(mixer, x)[:, -1], rtol=1e-10, atol=1e-12)
        assert same == (form == "prefix" or length == 1)


def test_weights_of_a_row_are_a_mean_over_its_features_and_sum_to_one():
    mixer, x = build(), draw(1, 70, 32)
    q, k, v = heads(mixer, x)
    weight = torch.exp(30 * torch.tanh(k / 30))
    per_feature = weight[:, :, None] / weight.cumsum(2)[:, :, :, None]  # (B, H, t, j, D)
    rows = torch.einsum("bhtd,bhtjd->bhtj", q.softmax(-1), per_feature).tril()
    torch.testing.assert_close(rows.sum(-1), torch.ones(1, 4, 70).double())
    torch.testing.assert_close(mixer(x), mixer.out((rows @ v).transpose(1, 2).flatten(2)), rtol=1e-10, atol=1e-10)


def test_a_head_of_one_feature_is_a_running_mean_and_has_no_query():
    mixer, x = build(heads=32), draw(1, 70, 32)
    before = mixer(x)
    weight = capped_exp(mixer.key(x))
    want = mixer.out((weight * mixer.value(x)).cumsum(1) / weight.cumsum(1))
    torch.testing.assert_close(before, want, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        mixer.query.weight.normal_()
    assert torch.equal(mixer(x), before)


class Constant(nn.Module):
    """Values that are the same for every token."""

    def forward(self, x):
        return torch.arange(x.shape[-1]).to(x.dtype).expand_as(x) / 8


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 100, 1e5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05), (torch.float16, 2e-3)])
def test_a_constant_value_comes_out_whatever_the_size_of_keys(form, size, dtype, tolerance):
    mixer, x = build(dtype, form=form), (min(size, 6e3) * torch.randn(2, 130, 32)).to(dtype)
    mixer.value, mixer.out = Constant(), nn.Identity()
    x.requires_grad_()
    y = mixer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, Constant()(x), rtol=tolerance, atol=tolerance)
    (grad,) = torch.autograd.grad(y.float().sum(), x)
    assert torch.isfinite(grad).all()


def test_a_document_of_small_weights_survives_one_of_huge_weights():
    """e^30 and e^-30 are 26 digits apart: nothing that subtracts running sums of both could tell the second."""
    mixer, x = build(torch.float32), torch.randn(1, 100, 32)
    with torch.no_grad():
        mixer.key.weight.copy_(torch.full((32, 32), 5.0))
    x[:, :37], x[:, 37:] = x[:, :37].abs(), -x[:, 37:].abs()
    documents = (torch.arange(100) >= 37).long()[None]
    torch.testing.assert_close(mixer(x, documents=documents)[:, 37:], mixer(x[:, 37:]), rtol=1e-5, atol=1e-6)


def test_a_cache_of_the_prefix_form_keeps_a_sum_per_feature():
    for form, numbers in (("prefix", 4 * 8 * 8 + 4 * 8), ("scalar", 4 * 8 * 8 + 4 * 8)):
        mixer = build(form=form)
        assert mixer.new_cache(1).nbytes() == 4 * numbers == mixer.cost(10**6).cache_bytes


def test_a_wrong_form_is_refused_with_the_right_ones():
    with pytest.raises(ValueError, match="form='mean': expected one of prefix, scalar"):
        build(form="mean")


@pytest.mark.parametrize("context", [1, 20, 64, 128, 320])
@pytest.mark.parametrize("form", FORMS)
def test_training_flops_are_the_counted_products_less_the_upper_halves_of_chunks(context, form):
    mixer = build(form=form)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mixer(draw(1, context, 32))
    chunk = min(context, CHUNK)
    masked_pairs = chunk * (chunk - 1) // 2 * (context // chunk)
    widths = 4 * ((8 + 8) + (1 + 8) if form == "prefix" else 8 + 9)
    assert mixer.cost(context).flops_per_token * context == counter.get_total_flops() - 2 * masked_pairs * widths
