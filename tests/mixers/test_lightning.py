"""Lightning attention: decay rates, LRPE and the formula of TransNormerLLM."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.mixers.golden import assert_golden, golden_mixer
from tests.mixers.published import assert_same, drawn_layer, from_minimax, rebuilt
from zoo.mixers.lightning import alibi_slopes, lightning_slopes
from zoo.mixers.parts.costs import CHUNK
from zoo.mixers.parts.positions import LinearizedRelativeEncoding
from zoo_kernels import linear_attention

ALIBI = {
    1: [1 / 256],
    2: [1 / 16, 1 / 256],
    4: [1 / 4, 1 / 16, 1 / 64, 1 / 256],
    8: [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256],
    3: [1 / 16, 1 / 256, 1 / 4],
    6: [1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2, 1 / 8],
    12: [2**-1, 2**-2, 2**-3, 2**-4, 2**-5, 2**-6, 2**-7, 2**-8, 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5],
}
PAPER = {  # (heads, layer, depth) -> rates
    (4, 0, 4): [0.0, 2.0, 4.0, 6.0],
    (4, 1, 4): [0.0, 1.5, 3.0, 4.5],
    (4, 3, 4): [0.0, 0.5, 1.0, 1.5],
    (8, 0, 1): [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0],
}
FACTORS = {  # (layer, depth) -> what TransNormerLLM multiplies ALiBi slopes with
    (0, 24): 1.00001,
    (23, 24): 1e-5,
    (1, 3): 0.50001,
    (0, 1): 1.00001,
}
OUTPUTS = {  # of layer 0 of 3, with LRPE, and of layer 1 of 3, with a sigmoid gate
    "transnormer": [
        [-2.22324961954, 0.240419750225, 0.618710343472, 1.09669528703,
         -3.53005724926, 1.94806879944, 1.84174764285, -0.0849425193616],
        [-0.985641981923, 0.274267404012, 0.555125893223, 1.09419715446,
         -0.112982372186, 0.772337502173, -1.10323349353, -0.16088513536],
    ],
    "paper": [
        [-1.41484942391, 0.713934796403, -0.563796276188, -0.0367114140252,
         -0.427105145348, 1.62879127874, 0.432186371731, -0.525255498225],
        [0.0379705552415, -1.04151346182, 1.45531233901, 0.488269657716,
         -0.307389723292, -0.453605746643, -1.36739030203, 1.31388124827],
    ],
}  # fmt: skip
LEARNED = [  # outputs of layer 1 of 3 with factors e^1 and e^-0.5
    [-2.218793942893, 0.238899142711, 0.619843503646, 1.101605631875,
     -3.52605278538, 1.952733233345, 1.83306679156, -0.081633776334],
    [-0.977989879832, 0.266708117381, 0.5552380385, 1.104462621213,
     -0.102673927816, 0.770579064157, -1.1170017886, -0.151068732266],
]  # fmt: skip


@pytest.mark.parametrize("heads", ALIBI)
def test_alibi_slopes(heads):
    torch.testing.assert_close(alibi_slopes(heads), torch.tensor(ALIBI[heads]), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("layer", "depth"), FACTORS)
def test_transnormer_rates_fall_to_almost_none_in_the_last_layer(layer, depth):
    want = torch.tensor(ALIBI[8]) * FACTORS[layer, depth]
    torch.testing.assert_close(lightning_slopes("transnormer", 8, layer, depth), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("heads", "layer", "depth"), PAPER)
def test_paper_rates_start_at_no_decay(heads, layer, depth):
    want = torch.tensor(PAPER[heads, layer, depth])
    torch.testing.assert_close(lightning_slopes("paper", heads, layer, depth), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("decay", ["transnormer", "paper", "learned"])
@pytest.mark.parametrize("heads", [1, 3, 8, 64])
def test_rates_are_finite_fp32_and_never_negative(decay, heads):
    for depth in (1, 2, 24):
        for layer in range(depth):
            rates = lightning_slopes(decay, heads, layer, depth)
            assert rates.dtype == torch.float32
            assert torch.isfinite(rates).all()
            assert (rates >= 0).all()


def build(dtype=torch.float64, **options):
    torch.manual_seed(0)
    given = {"width": 32, "heads": 4, "depth": 3} | options
    return zoo.mixers.build("lightning", **given).to(dtype)


@pytest.mark.parametrize("option", ["decay", "lrpe", "norm", "gate"])
def test_a_wrong_choice_is_refused_with_the_right_ones(option):
    with pytest.raises(ValueError, match=f"{option}='other': expected one of "):
        build(**{option: "other"})


def test_casting_the_model_does_not_change_the_decay():
    """One token, then silence of 500: what is left shows the rate, which bf16 would be off by up to 0.4 % * 500 * s."""
    mixer = build(torch.float32, norm="rms", gate="none", lrpe="none", depth=1)
    rates = []
    for module in (mixer, mixer.to(torch.bfloat16)):
        cache = module.new_cache(1)
        x = torch.zeros(1, 501, 32, dtype=module.out.weight.dtype)
        x[:, 0] = 1
        with torch.no_grad():
            module(x[:, :1], cache=cache)
            first = cache.state.clone()
            module(x[:, 1:], cache=cache)
        rates.append(-(cache.state.norm(dim=(-2, -1)) / first.norm(dim=(-2, -1))).log() / 500)
    torch.testing.assert_close(rates[0], rates[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(rates[0][0, 2:], torch.tensor(ALIBI[4][2:]) * 1.00001, rtol=1e-4, atol=0)


def test_lrpe_depends_on_the_distance_alone():
    encode = LinearizedRelativeEncoding(2, 4).double()
    q, k = torch.randn(2, 1, 9, 2, 4, dtype=torch.float64)
    time = torch.arange(9)[None]
    table = encode(time)
    product = torch.einsum("bthd,bjhd->bhtj", encode.encode(q, table), encode.encode(k, table))
    distance = (time.T - time).double()
    turned = torch.cos(distance[None, :, :, None] * encode.theta[:, None, None])
    want = torch.einsum("bthd,bjhd,htjd->bhtj", q, k, turned)
    torch.testing.assert_close(product, want, rtol=1e-10, atol=1e-10)


def test_lrpe_starts_with_one_ladder_over_all_heads():
    theta = LinearizedRelativeEncoding(2, 4).theta.flatten()
    torch.testing.assert_close(theta, torch.tensor([10000 ** (-2 * j / 8) for j in range(8)]))


@pytest.mark.parametrize(
    ("lrpe", "layer", "encoded"),
    [("first", 0, True), ("first", 1, False), ("all", 0, True), ("all", 2, True), ("none", 0, False)],
)
def test_lrpe_is_in_the_layers_that_it_names(lrpe, layer, encoded):
    mixer = build(lrpe=lrpe, layer=layer)
    assert (mixer.lrpe is not None) == encoded
    assert mixer.new_cache(1).state.shape == (1, 4, 16 if encoded else 8, 8)


def test_without_decay_it_is_the_lower_triangle_of_the_products():
    q, k, v = torch.randn(3, 2, 70, 3, 8, dtype=torch.float64)
    o, _ = linear_attention(q, k, v, torch.zeros(3))
    scores = torch.einsum("bthd,bjhd->bhtj", q, k).tril()
    torch.testing.assert_close(o, torch.einsum("bhtj,bjhe->bthe", scores, v), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lrpe", ["none", "all"])
@pytest.mark.parametrize("options", [{"decay": "learned"}, {"decay": "paper", "heads": 1}], ids=str)
def test_a_mixer_without_decay_is_undecayed_linear_attention_of_its_projections(options, lrpe):
    """The single head of the paper never forgets; learned rates are nothing times those they start at."""
    mixer, x = build(lrpe=lrpe, layer=1, **options), torch.randn(2, 150, 32, dtype=torch.float64)
    if mixer.log_factor is not None:
        with torch.no_grad():
            mixer.log_factor.fill_(-torch.inf)
    assert not mixer.log_decay().any()
    q, k, v = (part(x).unflatten(-1, (mixer.heads, -1)) for part in (mixer.query, mixer.key, mixer.value))
    q, k = F.silu(q), F.silu(k)
    if mixer.lrpe is not None:
        q, k = (mixer.lrpe.encode(y, mixer.lrpe(torch.arange(150)[None])) for y in (q, k))
    o = (torch.einsum("bthd,bjhd->bhtj", q, k).tril() @ v.transpose(1, 2)).transpose(1, 2).flatten(2)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    want = mixer.out(o * (x @ mixer.gate.weight.weight.T))
    cache = mixer.new_cache(2, dtype=torch.float64)
    with torch.no_grad():
        pieces = torch.cat([mixer(piece, cache=cache) for piece in x.split([100, 1, 49], 1)], 1)
    for got in (mixer(x), pieces):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-3, 8**-0.5, 1e3])
@pytest.mark.parametrize("norm", ["srms", "rms"])
def test_a_scale_of_the_queries_leaves_the_normed_output_as_it_is(monkeypatch, norm, factor):
    mixer, x = build(norm=norm, depth=1, layer=0), torch.randn(2, 70, 32, dtype=torch.float64)
    with torch.no_grad():
        mixer.value.weight *= 1e6  # so that the epsilon of the norm is nothing beside it
    want, attend, mixed = mixer(x), zoo.mixers.lightning.attend_linear, []

    def scaled(q, *given, **how):
        mixed.append(attend(factor * q, *given, **how))
        return mixed[-1]

    monkeypatch.setattr(zoo.mixers.lightning, "attend_linear", scaled)
    torch.testing.assert_close(mixer(x), want, rtol=1e-6, atol=1e-6)
    assert len(mixed) == 1


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("decay", ["transnormer", "paper"])
def test_equals_the_formula_of_transnormerllm_token_by_token(layer, decay):
    mixer, x = build(layer=layer, decay=decay, lrpe="none"), torch.randn(2, 67, 32, dtype=torch.float64)
    if decay == "transnormer":
        rates = torch.tensor(ALIBI[4], dtype=torch.float64) * (1 - layer / 2 + 1e-5)
    else:
        rates = torch.tensor(PAPER[4, 0, 4], dtype=torch.float64) * (1 - layer / 3)
    state, outputs = torch.zeros(2, 4, 8, 8, dtype=torch.float64), []
    for t in range(67):
        token = x[:, t]
        q, k = (F.silu(token @ m.weight.T).view(2, 4, 8) for m in (mixer.query, mixer.key))
        v = (token @ mixer.value.weight.T).view(2, 4, 8)
        state = torch.exp(-rates)[:, None, None] * state + torch.einsum("bhd,bhe->bhde", k, v)
        o = torch.einsum("bhd,bhde->bhe", q, state).flatten(1)
        o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        outputs.append((o * (token @ mixer.gate.weight.weight.T)) @ mixer.out.weight.T)
    # the rates are fp32 by contract: exp(-rate * distance) is off by what fp32 makes of a rate
    torch.testing.assert_close(mixer(x), torch.stack(outputs, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [2, 4, 8])
@pytest.mark.parametrize("length", [5, 64, 100])
def test_equals_the_layer_of_minimax_in_transformers(heads, length):
    """Its gate is a sigmoid, its norm has a weight, and it has SiLU on the values too."""
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    config = MiniMaxConfig(hidden_size=32, num_attention_heads=heads, num_hidden_layers=3, head_dim=32 // heads,
                           block_size=32, layer_types=["linear_attention"] * 3)  # fmt: skip
    for layer in (0, 1):
        theirs = drawn_layer(MiniMaxLightningAttention(config, layer))
        assert_same(theirs, rebuilt(from_minimax(theirs)), length, position_embeddings=None, attention_mask=None)


@pytest.mark.parametrize("heads", [1, 2, 8, 64])
def test_rates_equal_those_of_minimax_for_powers_of_two(heads):
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    config = MiniMaxConfig(hidden_size=heads, num_attention_heads=heads, num_hidden_layers=4, head_dim=1)
    for layer in range(4):
        theirs = MiniMaxLightningAttention(config, layer).slope_rate.flatten()
        # its last layer divides by L - 1 + 1e-5 where TransNormerLLM divides by L - 1
        torch.testing.assert_close(lightning_slopes("transnormer", heads, layer, 4), theirs, rtol=1e-5, atol=4e-6)


@pytest.mark.parametrize("context", [1, 20, 64, 128, 320])
@pytest.mark.parametrize("lrpe", ["none", "first"])
def test_training_flops_are_the_counted_products_less_the_upper_halves_of_chunks(context, lrpe):
    mixer = build(lrpe=lrpe)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mixer(torch.randn(1, context, 32, dtype=torch.float64))
    chunk = min(context, CHUNK)
    key_width = 64 if lrpe == "first" else 32
    masked_pairs = chunk * (chunk - 1) // 2 * (context // chunk)
    assert mixer.cost(context).flops_per_token * context == counter.get_total_flops() - 2 * masked_pairs * (
        key_width + 32
    )


def test_the_state_does_not_grow():
    mixer = build()
    assert mixer.cost(10).cache_bytes == mixer.cost(10**6).cache_bytes
    assert mixer.cost(10).decode_flops_per_token == mixer.cost(10**6).decode_flops_per_token


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [1, 3, 8, 64])
def test_learned_rates_start_exactly_at_those_of_transnormer(heads, dtype):
    for layer in range(3):
        learned = build(dtype, heads=heads, width=2 * heads, layer=layer, decay="learned").log_decay()
        assert learned.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(learned.float(), -lightning_slopes("transnormer", heads, layer, 3))


def test_outputs_of_both_conventions_equal_those_computed_elsewhere():
    """With rates in fp32."""
    assert_golden(golden_mixer("lightning", depth=3, layer=0), OUTPUTS["transnormer"], 1e-6)
    paper = golden_mixer("lightning", depth=3, layer=1, decay="paper", gate="sigmoid")
    assert_golden(paper, OUTPUTS["paper"], 1e-6)


def test_outputs_with_learned_rates_equal_those_computed_elsewhere():
    mixer = golden_mixer("lightning", depth=3, layer=1, decay="learned")
    with torch.no_grad():
        mixer.log_factor.copy_(torch.tensor([1.0, -0.5]))
    assert_golden(mixer, LEARNED, 1e-6)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_gradients_of_learned_rates_are_those_of_finite_differences(layer):
    mixer, small = build(layer=layer, decay="learned"), 1e-5
    x, weight = torch.randn(2, 2, 70, 32, dtype=torch.float64)

    def loss(factor):
        return (torch.func.functional_call(mixer, {"log_factor": factor}, x) * weight).sum()

    factor = torch.tensor([0.3, -0.2, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(loss(factor), factor)
    for head, unit in enumerate(small * torch.eye(4, dtype=torch.float64)):
        with torch.no_grad():
            want = (loss(factor + unit) - loss(factor - unit)) / (2 * small)
        assert grad[head].item() == pytest.approx(want.item(), rel=1e-5, abs=1e-7)
        assert grad[head] != 0


def test_learned_rates_never_let_a_state_grow():
    mixer = build(torch.float32, decay="learned")
    with torch.no_grad():
        mixer.log_factor.copy_(torch.tensor([-60.0, -3.0, 3.0, 30.0]))
    assert (mixer.log_decay() <= 0).all()
    y = mixer(torch.randn(1, 200, 32))
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters())


def test_padding_does_not_decay_a_learned_state():
    mixer, x = build(decay="learned", lrpe="none"), torch.randn(2, 9, 32, dtype=torch.float64)
    cache = mixer.new_cache(2, dtype=torch.float64)
    with torch.no_grad():
        mixer(x, cache=cache)
        before = cache.state.clone()
        mixer(x, cache=cache, lengths=torch.tensor([0, 9]))
    assert torch.equal(cache.state[0], before[0])
    assert not torch.equal(cache.state[1], before[1])
