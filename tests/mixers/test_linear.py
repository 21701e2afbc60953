"""Linear attention: feature maps, normalizers and the quadratic form of each of their combinations."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.mixers.golden import assert_golden, golden_mixer
from zoo.mixers.parts.costs import CHUNK
from zoo.mixers.parts.features import FEATURE_MAPS, capped_exp, elu_plus_one, taylor
from zoo.mixers.parts.positions import rotate

OUTPUTS = [
    [1.739531510055, -1.950979436056, 1.976192158991, 0.050780073916,
     -0.778992111766, -2.957256363675, -0.715574313603, 2.429538472677],
    [0.990343554287, -1.323291525318, 1.281599602153, -0.388912554532,
     -0.42262583909, -1.5780773761, -0.144763825876, 1.482328011531],
]  # fmt: skip
MAPS = {  # map, and normalizer where it is not the sum; taylor of 6 features
    "exp": [
        [1.80994474003, -2.04383286763, 2.05754463484, -0.0139345329435,
         -0.816934400221, -3.02016632106, -0.669310618171, 2.50690165835],
        [1.13936587229, -1.62704920762, 1.61429089575, -0.370257638062,
         -0.52858019013, -1.79408211085, -0.328945899386, 1.82581109786],
    ],
    "softmax": [
        [1.5678192577, -1.81672981619, 1.87662639728, 0.213691887507,
         -0.648442935591, -2.93781870959, -0.725446752205, 2.13947070349],
        [0.963624137173, -1.20798526613, 1.19997618286, -0.157317339667,
         -0.438427887595, -1.55156149895, -0.233168764741, 1.34610115832],
    ],
    "taylor": [
        [1.56469424842, -1.84744110528, 1.9103559582, 0.21848965518,
         -0.632392632866, -2.98564940543, -0.688601467893, 2.09772091406],
        [1.10224055915, -0.631651741366, 0.591917808688, 0.237876107358,
         -0.405507074543, -1.97099865579, -0.2232480906, 1.04787860972],
    ],
    "relu none": [
        [0.264036365778, -0.584972077697, 0.587962257145, -0.264933419612,
         -0.108801323852, -0.474675664121, -0.322430801643, 0.854390766481],
        [6.47963600428, -12.1250164571, 12.3942787451, -3.46397929063,
         -3.90027297221, -8.54587596017, -5.82680260359, 16.0396801865],
    ],
    "identity none": [
        [-10.5150237955, 14.8286065638, -14.8834603015, 2.53650426593,
         4.45673862681, 18.3394167191, 4.55261676228, -17.6589985614],
        [-1.08374651522, -11.4445039523, 15.0039614427, 6.75239424572,
         -3.61389412421, 3.41454944717, -14.3552819989, 10.0785987283],
    ],
    "elu+1 l2": [
        [1.5831734052, -1.51421889252, 1.53387244272, 0.27006986742,
         -0.722474705555, -2.64105674954, -0.449141197745, 1.78189828573],
        [1.62065561779, -1.89810037073, 1.84397405643, -0.260028327645,
         -0.6711093643, -2.68625981757, 0.114643080819, 1.71191455031],
    ],
}  # fmt: skip
SCORES = {  # phi(q) . phi(k), written without phi where that is possible
    "identity": lambda q, k: q @ k.mT,
    "relu": lambda q, k: q.clamp(min=0) @ k.clamp(min=0).mT,
    "elu+1": lambda q, k: (F.elu(q) + 1) @ (F.elu(k) + 1).mT,
    "exp": lambda q, k: torch.exp(30 * torch.tanh(q / 30)) @ torch.exp(30 * torch.tanh(k / 30)).mT,
    "softmax": lambda q, k: q.softmax(-1) @ k.softmax(-1).mT,
    "taylor": lambda q, k: 1 + q @ k.mT / 4 + (q @ k.mT / 4) ** 2 / 2,
}
POSITIVE = [name for name in SCORES if name not in ("identity", "relu")]


def build(dtype=torch.float64, **options):
    torch.manual_seed(0)
    return zoo.mixers.build("linear", **({"width": 32, "heads": 4} | options)).to(dtype)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def queries_and_keys(mixer, x):
    if mixer.small is None:
        return mixer.query(x), mixer.key(x)
    return mixer.small(x).chunk(2, -1)


def test_outputs_equal_those_computed_elsewhere():
    assert_golden(golden_mixer("linear"), OUTPUTS)


@pytest.mark.parametrize("name", MAPS)
def test_maps_and_normalizers_equal_those_computed_elsewhere(name):
    feature_map, _, normalizer = name.partition(" ")
    narrow = {"features": 6} if feature_map == "taylor" else {}
    assert_golden(golden_mixer("linear", feature_map=feature_map, normalizer=normalizer or "sum", **narrow), MAPS[name])


@pytest.mark.parametrize("rope_theta", [None, 100.0])
@pytest.mark.parametrize("normalizer", ["sum", "l2", "none"])
@pytest.mark.parametrize("feature_map", SCORES)
def test_equals_the_quadratic_form(feature_map, normalizer, rope_theta):
    """The sum of the normalizer runs over time, and each head has its own."""
    mixer, x = build(feature_map=feature_map, normalizer=normalizer, rope_theta=rope_theta), draw(2, 70, 32)
    q, k = (y.unflatten(-1, (4, -1)) for y in queries_and_keys(mixer, x))
    if rope_theta is not None:
        q, k = (rotate(y, torch.arange(70)[None], rope_theta) for y in (q, k))
    scores = SCORES[feature_map](q.transpose(1, 2), k.transpose(1, 2)).tril()
    y = scores @ mixer.value(x).view(2, 70, 4, 8).transpose(1, 2)
    if normalizer == "sum":
        total = scores.sum(-1, keepdim=True)
        y = y / torch.where(total.abs() < 1e-6, 1e-6 * total.sign() + 1e-6 * (total == 0), total)
    if normalizer == "l2":
        y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = mixer.out(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), want, rtol=1e-7, atol=1e-7)


class Constant(nn.Module):
    """Values that are the same for every token."""

    def forward(self, x):
        return torch.arange(x.shape[-1], dtype=x.dtype).expand_as(x) / 8


@pytest.mark.parametrize("feature_map", POSITIVE)
@pytest.mark.parametrize("size", [1, 30])
def test_a_constant_value_comes_out_as_it_is(feature_map, size):
    mixer, x = build(torch.float32, feature_map=feature_map, rope_theta=None), size * torch.randn(2, 70, 32)
    mixer.value, mixer.out = Constant(), nn.Identity()
    if size == 1 or feature_map in ("exp", "taylor"):  # the others' products fall below the least sum
        torch.testing.assert_close(mixer(x), Constant()(x), rtol=1e-4, atol=1e-5)
    assert (mixer(x).abs() <= 4).all()


@pytest.mark.parametrize("feature_map", ["identity", "relu"])
def test_weights_that_can_all_be_zero_are_not_called_normalized(feature_map):
    mixer, x = build(feature_map=feature_map, rope_theta=None), torch.randn(8, 70, 32, dtype=torch.float64)
    mixer.value, mixer.out = Constant(), nn.Identity()
    assert not mixer.normalized and build(feature_map="elu+1").normalized
    if feature_map == "relu":
        assert not torch.allclose(mixer(x), Constant()(x), 0.1, 0.1)


def test_taylor_features_are_the_second_order_of_the_exponential():
    q, k = draw(2, 5, 16)
    assert taylor(q).shape == (5, 153)
    u = (q * k).sum(-1) / 4
    torch.testing.assert_close((taylor(q) * taylor(k)).sum(-1), 1 + u + u**2 / 2, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("features", "made"), [(2, 6), (4, 15), (8, 45), (16, 153), (20, 231)])
def test_taylor_projects_queries_and_keys_to_its_width(features, made):
    mixer = build(feature_map="taylor", features=features)
    assert mixer.small.weight.shape == (2 * 4 * features, 32)
    assert mixer.key_width == made == taylor(draw(3, features)).shape[-1]
    assert mixer.new_cache(1).state.shape == (1, 4, made, 8)
    assert build(feature_map="taylor").features == 16 and build().key_width == 8


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_of_large_numbers_are_finite(name, dtype):
    x = torch.tensor([-6e4, -1e3, -90.0, 0.0, 12.0, 90.0, 150.0, 170.0], dtype=dtype).requires_grad_()
    y = FEATURE_MAPS[name].apply(x if name != "taylor" else x / 1000)
    (y.double() / y.detach().double().abs().clamp(min=1)).sum().backward()  # fp16 could not hold e^30
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


def test_features_have_the_values_they_are_named_after():
    x = torch.tensor([-40.0, -1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
    want = [math.exp(-40), 0.36787944117144233, 1.0, 1.5, 3.0]
    torch.testing.assert_close(elu_plus_one(x), torch.tensor(want, dtype=torch.float64), rtol=1e-7, atol=0)
    assert elu_plus_one(x.float())[0] > 0  # F.elu(x) + 1 is 0 there
    want = [4.614351156741998e-12, 0.36801565749974013, 1.0, 1.648644951258264, 7.367233739222112]
    torch.testing.assert_close(capped_exp(x), torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0)
    assert capped_exp(x.half()).dtype == torch.float32


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_every_map_can_be_pickled(feature_map):
    mixer, x = build(feature_map=feature_map), draw(1, 9, 32)
    assert torch.equal(pickle.loads(pickle.dumps(mixer))(x), mixer(x))


@pytest.mark.parametrize("feature_map", SCORES)
def test_half_precision_gives_its_own_type(feature_map):
    mixer = build(torch.float16, feature_map=feature_map)
    assert mixer(torch.randn(1, 9, 32).half()).dtype == torch.float16


def test_l2_leaves_the_direction_alone():
    mixer, x = build(normalizer="l2"), draw(1, 20, 32)
    before = mixer(x)
    with torch.no_grad():
        mixer.value.weight[:8] *= 1000
    torch.testing.assert_close(mixer(x), before, rtol=1e-2, atol=1e-2)
    assert "norm.weight" not in mixer.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_map": "elu"}, r"feature_map='elu': expected one of identity, relu, elu\+1, exp, softmax, taylor"),
        ({"normalizer": "max"}, "normalizer='max': expected one of sum, l2, none"),
        ({"feature_map": "taylor", "features": 0}, "features=0: expected at least 1"),
        ({"features": 8}, r"features=8 with feature_map='elu\+1': .* Only taylor takes a number, leave it null"),
        ({"feature_map": "exp", "features": 16}, "features=16 with feature_map='exp'"),
        ({"feature_map": "taylor", "features": 5}, "features=5: .* even number where rope_theta"),
        ({"width": 12}, "rope_theta needs an even head width"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("context", [1, 20, 64, 128, 320])
@pytest.mark.parametrize("options", [{}, {"normalizer": "none"}, {"feature_map": "taylor"}], ids=str)
def test_training_flops_are_the_counted_products_less_the_upper_halves_of_chunks(context, options):
    mixer = build(**options)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mixer(draw(1, context, 32))
    chunk = min(context, CHUNK)
    widths = 4 * (mixer.key_width + 8 + mixer.normalize)
    masked_pairs = chunk * (chunk - 1) // 2 * (context // chunk)
    assert mixer.cost(context).flops_per_token * context == counter.get_total_flops() - 2 * masked_pairs * widths
