"""Softmax attention, grouped and multi-query: rotary positions, sharing of key heads, norms and gates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.mixers.golden import assert_golden, golden_mixer
from zoo.mixers.parts.positions import rotate


def build(name, **options):
    torch.manual_seed(0)
    given = {"width": 32, "heads": 4} | options
    return zoo.mixers.build(name, **given).double()


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("shift", [1, 7, 1000])
@pytest.mark.parametrize("theta", [10.0, 10000.0])
def test_rotated_products_depend_on_the_distance_alone(shift, theta):
    q, k, time = draw(1, 9, 2, 8), draw(1, 9, 2, 8), torch.arange(9)[None]

    def products(offset):
        return torch.einsum("bthd,bjhd->bhtj", rotate(q, time + offset, theta), rotate(k, time + offset, theta))

    torch.testing.assert_close(products(shift), products(0), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(products(0), torch.einsum("bthd,bjhd->bhtj", q, k))


def test_rotation_turns_adjacent_pairs_by_position_times_frequency():
    x, theta = draw(1, 3, 1, 4), 100.0
    y = rotate(x, torch.tensor([[0, 1, 5]]), theta)
    for row, position in enumerate((0, 1, 5)):
        for pair, frequency in enumerate((1.0, theta**-0.5)):
            a, b = x[0, row, 0, 2 * pair : 2 * pair + 2]
            angle = torch.tensor(position * frequency, dtype=torch.float64)
            want = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()])
            torch.testing.assert_close(y[0, row, 0, 2 * pair : 2 * pair + 2], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotation_keeps_the_dtype_and_far_positions_precise(dtype):
    x, far = draw(1, 1, 1, 8).to(dtype), torch.tensor([[100_003]])
    y = rotate(x, far, 10000.0)
    assert y.dtype == dtype
    want = rotate(x.double(), far, 10000.0)
    assert (y.double() - want).abs().max() <= 0.05 * want.abs().max()


@pytest.mark.parametrize(
    ("rope_theta", "fraction"), [(None, 1.0), (100.0, 1.0), (10000.0, 1.0), (100.0, 0.5), (10000.0, 0.25)]
)
def test_equals_plain_attention_with_pairs_turned_by_the_distance(rope_theta, fraction):
    """Of a fraction, the first pairs turn, at the frequencies of a head of that width."""
    mixer = build("softmax", rope_theta=rope_theta, rope_fraction=fraction)
    x, pairs = draw(2, 19, 32), round(4 * fraction)
    q, k, v = (m(x).view(2, 19, 4, 8).transpose(1, 2) for m in (mixer.query, mixer.key, mixer.value))
    q, k = (torch.view_as_complex(y.unflatten(-1, (4, 2)).contiguous()) for y in (q, k))
    time = torch.arange(19, dtype=torch.float64)
    frequency = torch.zeros(4, dtype=torch.float64)
    if rope_theta is not None:
        frequency[:pairs] = rope_theta ** (-time[:pairs] / pairs)
    turn = torch.exp(1j * (time[:, None] - time)[..., None] * frequency)
    scores = torch.einsum("bhtd,bhjd,tjd->bhtj", q, k.conj(), turn).real / 8**0.5
    scores = scores.masked_fill(torch.ones(19, 19).triu(1).bool(), -torch.inf)
    want = mixer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "groups"), [("softmax", 4), ("softmax", 2), ("gqa", 2), ("gqa", 1), ("mqa", 1)])
def test_shared_key_heads_equal_full_attention_with_repeated_weights(name, groups):
    shared = build(name, **({} if name == "mqa" else {"kv_heads": groups}))
    full, x = build("softmax"), draw(2, 19, 32)
    state = shared.state_dict()
    for key in ("key.weight", "value.weight"):
        state[key] = state[key].view(groups, 8, 32).repeat_interleave(4 // groups, 0).reshape(32, 32)
    full.load_state_dict(state)
    torch.testing.assert_close(shared(x), full(x), rtol=1e-12, atol=1e-12)


def test_mqa_is_gqa_with_one_key_head():
    mqa, gqa, x = build("mqa"), build("gqa", kv_heads=1), draw(2, 19, 32)
    gqa.load_state_dict(mqa.state_dict())
    assert torch.equal(mqa(x), gqa(x))


@pytest.mark.parametrize(
    ("heads", "groups"), [(1, 1), (2, 2), (3, 1), (4, 2), (6, 2), (8, 2), (9, 1), (12, 3), (14, 2), (16, 4), (32, 8)]
)
def test_gqa_takes_a_quarter_of_the_heads(heads, groups):
    assert zoo.mixers.build("gqa", width=heads * 2, heads=heads).kv_heads == groups


def test_qk_norm_makes_the_scale_of_queries_and_keys_irrelevant():
    mixer, x = build("softmax", qk_norm=True), draw(1, 9, 32)
    before = mixer(x)
    with torch.no_grad():
        mixer.query.weight *= 300
        mixer.key.weight *= 500
    torch.testing.assert_close(mixer(x), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("gate", "f"), [("linear", lambda g: g), ("sigmoid", torch.sigmoid), ("silu", F.silu)])
def test_a_gate_multiplies_what_is_projected_out(gate, f):
    gated, plain, x = build("softmax", gate=gate), build("softmax"), draw(1, 9, 32)
    plain.load_state_dict(gated.state_dict(), strict=False)
    plain.out = torch.nn.Identity()
    want = gated.out(plain(x) * f(gated.gate.weight(x)))
    torch.testing.assert_close(gated(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_heads": 3}, "heads=4 is not divisible by kv_heads=3"),
        ({"kv_heads": 0}, "kv_heads=0"),
        ({"kv_heads": 8}, "kv_heads=8"),
        ({"width": 12}, r"rope_theta needs an even head width, got width / heads = 3"),
        ({"rope_fraction": 1.5}, r"rope_fraction=1\.5: expected a part of each head, over 0 and at most 1"),
        ({"rope_fraction": 0.0}, r"rope_fraction=0\.0: expected a part"),
        ({"rope_fraction": 0.4}, r"rope_theta needs an even head width, got rope_fraction=0\.4 of width / heads = 8"),
        ({"rope_theta": 0}, "rope_theta=0: expected a base over 0"),
        ({"rope_theta": -1.0}, r"rope_theta=-1\.0: expected a base over 0"),
        ({"gate": "tanh"}, "gate='tanh': expected one of none, linear, sigmoid, silu"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("softmax", **options)


def test_an_odd_head_width_is_fine_without_rope():
    assert build("softmax", width=12, rope_theta=None)(draw(1, 4, 12)).shape == (1, 4, 12)


@pytest.mark.parametrize("name", ["softmax", "gqa", "mqa"])
@pytest.mark.parametrize("context", [1, 20, 256])
def test_training_flops_are_the_counted_products(name, context):
    mixer, x = build(name), draw(1, context, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mixer(x)
    assert mixer.cost(context).flops_per_token * context == counter.get_total_flops()


# fmt: off
OUTPUTS = {
    "softmax": [
        [1.4032664417, -1.5639333029, 1.6481294824, 0.36294798067,
         -0.57453968709, -2.7387688023, -0.87354446592, 1.9980591064],
        [0.84834427972, -1.5147487314, 1.5733172401, -0.19225755956,
         -0.30792558728, -1.7969616034, -0.68659552982, 1.7857658778],
    ],
    "mqa": [
        [0.029448839705, -0.16877454682, 0.16877454682, -0.054938433704,
         0.93595065198, -2.896198475, -0.81010522212, 0.89449249553],
        [0.39297807681, -0.50798249627, 0.50798249627, 0.13898682868,
         -0.025764510277, -1.1016406996, -0.10591124326, 0.3599024914],
    ],
    "window": [
        [1.4032664417, -1.5639333029, 1.6481294824, 0.36294798067,
         -0.57453968709, -2.7387688023, -0.87354446592, 1.9980591064],
        [0.75327282916, -1.1018770571, 1.1751260975, 0.057954089988,
         -0.18410178821, -1.9272602439, -1.0128944452, 1.7814622247],
    ],
}
# fmt: on
OPTIONS = {"window": {"window": 2, "sink_tokens": 1}}


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs_are_those_computed_elsewhere(name):
    """Rotary positions in adjacent pairs, one key head for both heads, a window of two keys and the first token."""
    assert_golden(golden_mixer(name, **OPTIONS.get(name, {})), OUTPUTS[name])
