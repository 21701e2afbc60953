"""The decoder: cost, causality, caches, documents, initial values and configuration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from zoo.model import Decoder, DecoderConfig
from zoo.model.block import GatedMLP

VOCABULARY, WIDTH, DEPTH = 97, 32, 3
SCHEDULES = {
    "lightning": ["lightning"] * 3,
    "softmax": ["softmax"] * 3,
    "mixed": ["lightning", "wide", "mqa"],
    "free": ["free", "narrow", "window"],
}
OPTIONS = {
    "wide": {"name": "softmax", "kv_heads": 2, "qk_norm": True},
    "lightning": {"norm": "rms", "lrpe": "all"},
    "free": {"name": "softmax", "head_dim": 6, "value_dim": 14, "gate": "silu"},
    "narrow": {"name": "retention", "head_dim": 4, "value_dim": 8},
}
every_schedule = pytest.mark.parametrize("layers", SCHEDULES.values(), ids=SCHEDULES.keys())
every_style = pytest.mark.parametrize("style", ["llama", "transnormer"])


def config(layers=SCHEDULES["mixed"], **options):
    given = {"vocab_size": VOCABULARY, "width": WIDTH, "depth": len(layers), "heads": 4, "mixers": OPTIONS} | options
    return DecoderConfig(layer_types=layers, **given)


def build(layers=SCHEDULES["mixed"], **options):
    torch.manual_seed(0)
    return Decoder(config(layers, **options)).double().eval()


def draw(batch=2, length=70):
    return torch.randint(VOCABULARY, (batch, length))


def assert_equal(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@every_schedule
@every_style
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mlp_width", [None, 48])
def test_cost_counts_every_parameter_once(layers, style, tied, mlp_width):
    decoder = build(layers, style=style, tie_embeddings=tied, mlp_width=mlp_width)
    assert decoder.cost(64).parameters == sum(p.numel() for p in decoder.parameters())


@every_schedule
def test_cost_adds_up_the_layers_and_the_head(layers):
    decoder = build(layers)
    mixers = [block.mixer.cost(64) for block in decoder.blocks]
    outside = 2 * (VOCABULARY * WIDTH + 3 * 3 * WIDTH * 128)
    cost = decoder.cost(64)
    assert cost.flops_per_token == sum(m.flops_per_token for m in mixers) + outside
    assert cost.decode_flops_per_token == sum(m.decode_flops_per_token for m in mixers) + outside
    assert cost.cache_bytes == sum(m.cache_bytes for m in mixers)


@every_schedule
@every_style
def test_logits_do_not_depend_on_the_future(layers, style):
    decoder, ids = build(layers, style=style), draw()
    want = decoder(ids)
    assert want.shape == (2, 70, VOCABULARY)
    for t in (0, 1, 30, 63, 64, 68):
        changed = torch.cat([ids[:, : t + 1], (ids[:, t + 1 :] + 1) % VOCABULARY], 1)
        torch.testing.assert_close(decoder(changed)[:, : t + 1], want[:, : t + 1], rtol=1e-12, atol=1e-12)


@every_schedule
@pytest.mark.parametrize("pieces", [[70], [1] * 70, [64, 1, 5], [1, 33, 33, 1, 2]], ids=str)
@torch.no_grad()
def test_any_split_of_prefill_and_decode_equals_the_whole(layers, pieces):
    decoder, ids = build(layers), draw()
    cache = decoder.new_cache(2)
    got = torch.cat([decoder(piece, cache=cache) for piece in ids.split(pieces, 1)], 1)
    assert_equal(got, decoder(ids))
    assert cache.nbytes() == 2 * decoder.cost(70, torch.float64).cache_bytes


@every_schedule
@torch.no_grad()
def test_rows_of_a_cache_go_on_as_they_would_have_and_so_does_one_that_was_saved(layers):
    decoder, ids = build(layers), draw(3, 12)
    cache, loaded = decoder.new_cache(3), decoder.new_cache(3)
    decoder(ids, cache=cache, lengths=torch.tensor([12, 5, 9]))
    state, swapped = cache.state_dict(), cache.rows([2]).join(cache.rows([0, 1]))
    assert swapped.nbytes() == cache.nbytes() and len(swapped.layers) == len(layers)
    loaded.load_state_dict(state)
    with pytest.raises(ValueError, match="the state has 3 rows and the cache 1"):
        decoder.new_cache(1).load_state_dict(state)
    for length in (1, 4):
        ids = draw(3, length)
        want = decoder(ids, cache=cache)
        assert torch.equal(decoder(ids, cache=loaded), want)
        assert_equal(decoder(ids[[2, 0, 1]], cache=swapped), want[[2, 0, 1]])


@torch.no_grad()
def test_a_cache_of_a_bf16_model_takes_the_bytes_of_its_cost():
    decoder = build().to(torch.bfloat16)
    cache = decoder.new_cache(1)
    decoder(draw(1, 20), cache=cache)
    assert cache.nbytes() == decoder.cost(20, torch.bfloat16).cache_bytes


@every_schedule
@every_style
def test_packed_documents_equal_each_alone(layers, style):
    decoder, ids = build(layers, style=style), draw(1)
    lengths = [1, 37, 1, 31]
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    packed = decoder(ids, documents=documents)
    alone = [decoder(part) for part in ids.split(lengths, 1)]
    assert_equal(packed, torch.cat(alone, 1))


@every_schedule
def test_checkpointed_activations_give_the_same_gradients(layers):
    ids, results = draw(), []
    documents = (torch.arange(70) > 40).long().expand(2, 70)
    for checkpointed in (False, True):
        decoder = build(layers).train()
        decoder.checkpoint_activations = checkpointed
        decoder(ids, documents=documents).square().mean().backward()
        results.append([p.grad for p in decoder.parameters()])
    assert all(map(torch.equal, *results))


def test_checkpointed_activations_do_not_ignore_a_cache():
    decoder, ids = build().train(), draw()
    want = decoder(ids)
    decoder.checkpoint_activations = True
    cache = decoder.new_cache(2)
    got = torch.cat([decoder(piece, cache=cache) for piece in ids.split([50, 20], 1)], 1)
    assert_equal(got, want)


@every_style
@pytest.mark.parametrize("tied", [True, False])
def test_a_state_dict_gives_the_same_decoder(style, tied):
    first, other = (build(style=style, tie_embeddings=tied) for _ in range(2))
    ids = draw()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(ids), first(ids))
    assert (other.head.weight is other.embedding.weight) == tied


def test_a_config_survives_its_dictionary():
    assert DecoderConfig(**config().to_dict()) == config()


@every_style
@pytest.mark.parametrize("depth", [1, 4])
def test_the_initial_loss_is_that_of_a_guess(style, depth):
    decoder = build(["lightning", "softmax"] * depth, style=style, width=64, vocab_size=500).float()
    ids = torch.randint(500, (4, 64))
    loss = torch.nn.functional.cross_entropy(decoder(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(500)) < 0.25


@every_style
@pytest.mark.parametrize("tied", [True, False])
def test_initial_values_have_the_documented_deviation(style, tied):
    layers = ["lightning", "softmax"] * 2
    decoder = build(layers, style=style, width=128, vocab_size=1000, mlp_width=256, tie_embeddings=tied)
    residual = (2 * 4) ** -0.5 if style == "llama" else 1.0

    def deviation(inputs):
        return inputs**-0.5 if style == "llama" else 0.02

    want = {"embedding.weight": 0.02, "head.weight": 0.02}
    for i, layer in enumerate(layers):
        names = ["query", "key", "value", *(["gate.weight"] if layer == "lightning" else [])]
        want |= {f"blocks.{i}.mixer.{name}.weight": deviation(128) for name in names}
        want |= {f"blocks.{i}.mlp.{name}.weight": deviation(128) for name in ("gate", "up")}
        want[f"blocks.{i}.mixer.out.weight"] = deviation(128) * residual
        want[f"blocks.{i}.mlp.down.weight"] = deviation(256) * residual
    matrices = {n: p for n, p in decoder.state_dict().items() if p.dim() == 2 and not n.endswith("log_ratio")}
    assert matrices.keys() == want.keys()
    for name, matrix in matrices.items():
        assert matrix.std().item() == pytest.approx(want[name], rel=0.04), name
        assert abs(matrix.mean().item()) < 4 * want[name] / matrix.numel() ** 0.5, name
    norms = [p for n, p in decoder.named_parameters() if p.dim() == 1]
    assert all((p == 1).all() for p in norms)
    assert bool(norms) == (style == "llama" or "norm" in OPTIONS["lightning"])


def test_the_two_styles_differ_as_documented():
    llama, transnormer = build(style="llama"), build(style="transnormer")
    assert llama.embedding_scale == 1.0
    assert transnormer.embedding_scale == WIDTH**0.5
    mlp, x = GatedMLP(8, 16, False), torch.randn(3, 8)
    torch.testing.assert_close(mlp(x), mlp.down(mlp.gate(x) * mlp.up(x)))
    mlp.activated = True
    torch.testing.assert_close(mlp(x), mlp.down(torch.nn.functional.silu(mlp.gate(x)) * mlp.up(x)))


@pytest.mark.parametrize(("width", "hidden"), [(32, 128), (64, 192), (96, 256), (768, 2048), (1024, 2752)])
def test_the_default_mlp_is_8_thirds_wide_rounded_up_to_64(width, hidden):
    assert config(width=width).hidden_width() == hidden
    assert config(width=width, mlp_width=100).hidden_width() == 100


def test_the_same_mixer_can_have_two_entries():
    decoder = build(["a", "b"], mixers={"a": {"name": "gqa", "kv_heads": 1}, "b": {"name": "gqa", "kv_heads": 4}})
    assert [block.mixer.kv_heads for block in decoder.blocks] == [1, 4]


def test_each_layer_knows_its_depth():
    decoder = build(["lightning"] * 3)
    assert [(b.mixer.layer, b.mixer.depth) for b in decoder.blocks] == list(zip(range(3), itertools.repeat(3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, r"model\.vocab_size=0: expected a number >= 1"),
        ({"width": -1}, r"model\.width=-1"),
        ({"heads": 0}, r"model\.heads=0"),
        ({"depth": 0}, r"model\.depth=0"),
        ({"depth": 2}, "layer_types has 3 entries for depth=2"),
        ({"style": "gpt"}, r"model\.style='gpt': expected one of llama, transnormer"),
        ({"mlp_width": 0}, r"model\.mlp_width=0"),
        ({"mlp_width": -8}, r"model\.mlp_width=-8"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        config(**change)


@pytest.mark.parametrize(
    ("layers", "mixers", "message"),
    [
        (["nonsense"], {}, "unknown attention 'nonsense': expected one of"),
        (["softmax"], {"softmax": {"widow": 1}}, "has no option 'widow'"),
        (["x"], {"x": {"name": "nonsense"}}, "unknown attention 'nonsense'"),
        (["softmax"], {"softmax": {"layer": 1}}, r"mixers\.softmax sets layer: these are the model's"),
    ],
)
def test_a_layer_that_cannot_be_built_is_refused(layers, mixers, message):
    with pytest.raises(ValueError, match=message):
        build(layers, mixers=mixers)


def test_documents_and_a_cache_together_are_refused():
    decoder = build()
    with pytest.raises(ValueError, match="documents and cache"):
        decoder(draw(1, 4), documents=torch.zeros(1, 4, dtype=torch.long), cache=decoder.new_cache(1))


def test_separators_reach_the_attentions_that_ask_for_them():
    """Far from a marked token, its key is read if it is a separator, in every way through the decoder."""
    options = {"longformer": {"window": 4, "global_tokens": 0, "separators": True}}
    layers, ids = ["longformer"], draw(1, 40).clamp(min=2)
    ids[0, 5] = 1
    with_marks = build(layers, mixers=options, separator_tokens=[1])
    without = build(layers, mixers=options, separator_tokens=[0])
    without.load_state_dict(with_marks.state_dict())
    changed = ids.clone()
    changed[0, 4] = (ids[0, 4] + 1) % 90 + 2  # in sight of the window alone
    assert torch.equal(with_marks(changed)[0, 20:], with_marks(ids)[0, 20:])
    assert torch.equal(without(ids)[0, :5], with_marks(ids)[0, :5])
    assert not torch.allclose(without(ids)[0, 20:], with_marks(ids)[0, 20:])
    cache = with_marks.new_cache(1)
    parts = [with_marks(piece, cache=cache) for piece in ids.split([7, 1, 20, 12], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), with_marks(ids))
    with_marks.train().checkpoint_activations = True
    torch.testing.assert_close(with_marks(ids), torch.cat(parts, 1))


def test_an_attention_that_asks_for_separators_must_get_some():
    with pytest.raises(ValueError, match=r"separator_tokens is empty: .*model\.separators"):
        build(["longformer"], mixers={"longformer": {"separators": True}})(draw(1, 4))


@torch.no_grad()
def test_padding_of_ids_can_be_any_number():
    decoder, ids, results = build(), draw(3, 9), []
    lengths = torch.tensor([2, 9, 0])
    real = torch.arange(9) < lengths[:, None]
    for value in (0, -100, 10**12):
        cache = decoder.new_cache(3)
        first = decoder(torch.where(real, ids, value), cache=cache, lengths=lengths)[real]
        results.append(torch.cat([first, decoder(ids[:, :2], cache=cache).flatten(0, 1)]))
    assert torch.isfinite(results[0]).all()
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(4, dtype=torch.long), r"ids is torch\.int64 of shape \(4,\): expected token ids"),
        (torch.zeros(1, 4), r"ids is torch\.float32 of shape \(1, 4\): expected token ids"),
        ([[1, 2]], "ids is list: expected token ids"),
        (torch.zeros(3, 4, dtype=torch.long), "x has 3 rows and the cache 2"),
    ],
    ids=str,
)
def test_ids_that_do_not_fit_are_refused_and_leave_the_cache_as_it_is(ids, message):
    decoder = build()
    cache = decoder.new_cache(2)
    with pytest.raises(ValueError, match=message):
        decoder(ids, cache=cache)
    assert all(not layer.lengths.any() for layer in cache.layers)


def test_a_cache_of_another_number_of_layers_is_refused():
    cache = build(["softmax"] * 2).new_cache(2)
    with pytest.raises(ValueError, match="the cache is of 2 layers and the decoder of 3"):
        build(["softmax"] * 3)(draw(), cache=cache)
