"""Performer: the formula, its limit, its stabilizers and its draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import zoo
from tests.mixers.golden import assert_golden, golden_mixer
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.positions import rotate
from zoo_kernels.softmax.mask import document_positions

OUTPUTS = {  # by feature map, of 6 features
    "exp": [
        [1.63081259532, -1.85560418339, 1.90202982461, 0.153353417703,
         -0.700614820703, -2.92987024747, -0.733411908006, 2.25729672683],
        [0.938733313691, -0.888819661105, 0.812538758989, -0.269411811679,
         -0.318101063961, -1.63305404284, -0.0554192544937, 1.18728347775],
    ],
    "relu": [
        [1.46699489707, -1.44899936582, 1.50846085891, 0.293377135912,
         -0.690945035159, -2.50653406502, -1.05387299977, 2.28695225403],
        [0.977156157541, -1.0596033801, 1.03190614485, -0.229957067121,
         -0.441128671921, -1.52499075111, -0.557629058053, 1.73704504747],
    ],
}  # fmt: skip


def build(dtype=torch.float64, **options):
    torch.manual_seed(0)
    given = {"width": 32, "heads": 4, "depth": 3} | options
    return zoo.mixers.build("performer", **given).to(dtype)


def heads_of(x, linear, heads=4):
    return F.linear(x, linear.weight).unflatten(-1, (heads, -1))


def call(q, documents=None):
    positions = torch.arange(q.shape[1])[None] if documents is None else document_positions(documents)
    return Call(q.flatten(-2), positions, documents, None, None, None)


def naive(q, k, v, weight, relu=False):
    """Weights of all pairs ``(B, H, T, T)`` from one feature after the other, without any stabilizer, in fp64."""
    q, k = (x.double() * x.shape[-1] ** -0.25 for x in (q, k))
    kernel = torch.zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[1]).double()
    for f in range(weight.shape[1]):
        of_q, of_k = (torch.einsum("bthd,hd->bht", x, weight[:, f].double()) for x in (q, k))
        if relu:
            of_q, of_k = of_q.clamp(min=0) + 1e-3, of_k.clamp(min=0) + 1e-3
        else:
            of_q, of_k = ((u - x.square().sum(-1).mT / 2).exp() for u, x in ((of_q, q), (of_k, k)))
        kernel += of_q[..., None] * of_k[..., None, :]
    kernel = kernel.tril()
    return torch.einsum("bhij,bjhd->bihd", kernel / kernel.sum(-1, keepdim=True), v.double())


@pytest.mark.parametrize("feature_map", ["exp", "relu"])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("rope_theta", [None, 100.0])
def test_the_layer_is_its_formula(feature_map, qk_norm, rope_theta):
    mixer = build(feature_map=feature_map, qk_norm=qk_norm, rope_theta=rope_theta, features=20)
    x = torch.randn(2, 70, 32).double()
    q, k, v = (heads_of(x, p) for p in (mixer.query, mixer.key, mixer.value))
    if qk_norm:
        q, k = (y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.query_norm.weight for y in (q, k))
    if rope_theta:
        q, k = (rotate(y, torch.arange(70)[None], rope_theta) for y in (q, k))
    y = naive(q, k, v, mixer.projection.weight(), relu=feature_map == "relu")
    torch.testing.assert_close(mixer(x), F.linear(y.flatten(-2), mixer.out.weight), rtol=1e-9, atol=1e-10)


def relative_error(q, k, v, features):
    mixer = build(width=8 * 64, heads=8, features=features, qk_norm=False, rope_theta=None)
    with torch.no_grad():
        got = mixer.mix(q, k, v, call(q))
        want = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)
    return ((got - want).norm() / want.norm()).item()


def test_the_error_to_softmax_attention_falls_as_the_root_of_the_features():
    q, k, v = (s * torch.randn(1, 96, 8, 64).double() for s in (0.25, 0.25, 1.0))
    features = [64, 256, 1024, 4096]
    errors = [relative_error(q, k, v, m) for m in features]
    slopes = [math.log(b / a) / math.log(4) for a, b in itertools.pairwise(errors)]
    assert all(abs(slope + 0.5) < 0.15 for slope in slopes), (errors, slopes)
    assert abs(sum(slopes) / 3 + 0.5) < 0.05, (errors, slopes)
    assert errors[-1] < 0.02


def test_normalized_queries_and_keys_start_where_the_default_features_are_enough():
    """At weights of 1 as in other layers the estimate would be useless."""
    mixer = build(width=8 * 64, heads=8)
    x = torch.randn(1, 128, 512).double()
    q, k, v = (heads_of(x, p, 8) for p in (mixer.query, mixer.key, mixer.value))
    errors = []
    for weight in (mixer.query_norm.weight, torch.ones(64).double()):
        with torch.no_grad():
            a, b = (F.rms_norm(y, (64,), weight) for y in (q, k))
        errors.append(relative_error(a, b, v, 256))
    assert (mixer.query_norm(q) * 64**-0.25).norm(dim=-1).sub(1).abs().max() < 1e-4
    assert errors[0] < 0.15
    assert errors[1] > 1


def qkv(length=40, dtype=torch.float64, width=8):
    return [torch.randn(1, length, 4, width, dtype=dtype) for _ in range(3)]


@pytest.mark.parametrize("place", [0, 17, 39])
@pytest.mark.parametrize("factor", [3.0, 300.0, 0.0])
def test_an_outlier_key_changes_only_what_comes_after_it(place, factor):
    """Also in fp32, where a maximum over all keys would drown the others and an epsilon would show it."""
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        mixer, (q, k, v) = build(dtype, qk_norm=False, features=16), qkv(dtype=dtype)
        weight = mixer.projection.weight()
        with torch.no_grad():
            before = mixer.mix(q, k, v, call(q))
            k[:, place] *= factor
            after = mixer.mix(q, k, v, call(q))
        assert torch.equal(before[:, :place], after[:, :place])
        want = naive(q, k, v, weight)
        rows = ~want.isnan()  # exp(-|k|^2 / 2) is 0 without a stabilizer: a row that sees nothing else
        assert torch.isfinite(after).all()
        torch.testing.assert_close(after.double()[rows], want[rows], rtol=tolerance, atol=tolerance)


def test_a_key_that_points_along_a_feature_raises_the_maximum_without_a_trace():
    """Its exponent is |w|^2 / 2, about 30 at this width, where those of the others are about 1."""
    mixer, (q, k, v) = build(torch.float32, width=256, qk_norm=False, features=32), qkv(20, torch.float32, 64)
    q, k = q / 4, k / 4
    k[:, 10] = 64**0.25 * mixer.projection.weight()[:, 0]
    before, after = q[:, :10], q[:, :11]
    with torch.no_grad():
        cache = mixer.new_cache(1)
        mixer.mix(before, k[:, :10], v[:, :10], Call(before, torch.arange(10)[None], None, None, cache, None))
        assert cache.maximum.max() < 5
        cache = mixer.new_cache(1)
        mixer.mix(after, k[:, :11], v[:, :11], Call(after, torch.arange(11)[None], None, None, cache, None))
        assert cache.maximum.min() > 15
        got = mixer.mix(q, k, v, call(q))
    torch.testing.assert_close(got.double(), naive(q, k, v, mixer.projection.weight()), rtol=1e-4, atol=1e-4)


def test_nothing_overflows_however_large_queries_and_keys_are():
    mixer = build(torch.float32, qk_norm=False)
    x = (300 * torch.randn(2, 70, 32)).requires_grad_()
    mixer(x).square().mean().backward()
    for tensor in (mixer(x), x.grad, *(p.grad for p in mixer.parameters())):
        assert torch.isfinite(tensor).all()


def test_keys_far_below_the_maximum_of_another_document_are_not_lost():
    """The first document's exponents are near 0, the second's near -4000: e^-4000 is 0 even in fp64."""
    mixer, (q, k, v) = build(qk_norm=False, features=16), qkv()
    k[:, 20:] *= 32
    documents = (torch.arange(40) // 20)[None]
    with torch.no_grad():
        packed = mixer.mix(q, k, v, call(q, documents))
        alone = mixer.mix(*(x[:, 20:] for x in (q, k, v)), call(q[:, 20:]))
    torch.testing.assert_close(packed[:, 20:], alone, rtol=1e-10, atol=1e-10)
    assert alone.norm() > 1


def test_a_cache_reads_the_maximum_of_its_row_alone():
    mixer, x = build(qk_norm=False), torch.randn(2, 30, 32).double()
    x[0] *= 5
    with torch.no_grad():
        cache = mixer.new_cache(2, dtype=torch.float64)
        mixer(x[:, :20], cache=cache)
        alone = mixer.new_cache(1, dtype=torch.float64)
        mixer(x[1:, :20], cache=alone)
    torch.testing.assert_close(cache.maximum[1:], alone.maximum)
    assert not torch.allclose(cache.maximum[0], cache.maximum[1])


def test_constant_values_stay():
    for feature_map in ("exp", "relu"):
        mixer, (q, k, v) = build(feature_map=feature_map), qkv()
        got = mixer.mix(q, k, torch.full_like(v, 3.0), call(q))
        torch.testing.assert_close(got, torch.full_like(v, 3.0))


def test_features_change_in_training_at_the_scheduled_step_and_never_in_evaluation():
    mixer, x = build(redraw=5), torch.randn(1, 20, 32).double()
    first = mixer(x)
    for step in range(5):
        mixer.start_step(step)
        assert torch.equal(mixer(x), first)
    mixer.eval().start_step(5)
    assert torch.equal(mixer(x), first)
    mixer.train().start_step(5)
    assert not torch.allclose(mixer(x), first)
    assert torch.equal(mixer.eval()(x), mixer.train()(x))


def test_resuming_restores_the_features_and_goes_on_with_the_same():
    straight, resumed, x = build(redraw=5), build(redraw=5), torch.randn(1, 20, 32).double()
    for step in range(13):
        straight.start_step(step)
    resumed.load_state_dict(straight.state_dict())
    assert torch.equal(resumed(x), straight(x))
    for step in range(13, 17):
        straight.start_step(step)
        resumed.start_step(step)
        assert torch.equal(resumed(x), straight(x))


def test_layers_have_features_of_their_own():
    assert not torch.equal(build(layer=0).projection.weight(), build(layer=1).projection.weight())


def test_a_wrong_choice_is_refused_with_the_right_ones():
    with pytest.raises(ValueError, match="feature_map='cos': expected one of exp, relu"):
        build(feature_map="cos")


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_equal_those_computed_elsewhere(name):
    """With weights of norms and biases of gates that start in fp32."""
    assert_golden(golden_mixer("performer", features=6, feature_map=name), OUTPUTS[name], 1e-6)
