"""The files of configs/schedule, named mixers in a schedule, and what a schedule may not change."""

from __future__ import annotations

import pytest
import torch
from hydra import compose, initialize_config_dir

from tests.tiers import in_ci
from zoo.config import CONFIGS, register_mixers
from zoo.mixers.gqa import GroupedQueryAttention
from zoo.mixers.softmax import SoftmaxAttention
from zoo.mixers.window import WindowAttention
from zoo.mixers.window_linear import WindowLinearAttention
from zoo.model import Decoder, DecoderConfig
from zoo.model.from_config import Architecture, decoder_config
from zoo.model.schedule import ScheduleError, expand_schedule

SIZES = ("model.width=32", "model.heads=4")
A, S = "lightning", "softmax"


def composed(*overrides):
    register_mixers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", ["attention=lightning", *SIZES, *overrides])


def layers(*overrides):
    return decoder_config(Architecture.of(composed(*overrides)), 10).layer_types


def built(*overrides):
    with torch.device("meta"):
        return Decoder(decoder_config(Architecture.of(composed(*overrides)), 10))


@pytest.mark.parametrize(
    ("preset", "depth", "expected"),
    [
        ("hybrid_1to1", 4, [A, S, A, S]),
        ("hybrid_1to1", 5, [A, S, A, S, A]),
        ("hybrid_3to1", 8, [A, A, A, S] * 2),
        ("hybrid_3to1", 6, [A, A, A, S, A, A]),
        ("sandwich", 4, [S, A, A, S]),
        *in_ci(
            ("hybrid_3to1", 3, [A, A, A]),
            ("hybrid_7to1", 16, ([A] * 7 + [S]) * 2),
            ("hybrid_7to1", 9, [A] * 7 + [S, A]),
            ("softmax_first", 4, [S, A, A, A]),
            ("softmax_last", 4, [A, A, A, S]),
            ("sandwich", 1, [S]),
        ),
    ],
)
def test_presets(preset, depth, expected):
    assert layers(f"schedule={preset}", f"model.depth={depth}") == expected


def test_k_layers_of_softmax():
    first, last, both = (composed(f"schedule={name}") for name in ("softmax_first", "softmax_last", "sandwich"))
    for depth, k in [(d, k) for d in (1, 4, 5) for k in range(d + 1)]:
        found = []
        for config in (first, last, both):
            config.model.depth, config.schedule.k = depth, k
            found.append(decoder_config(Architecture.of(config), 10).layer_types)
        assert found[0] == [S] * k + [A] * (depth - k)
        assert found[1] == found[0][::-1]
        assert found[2] == [S if S in pair else A for pair in zip(*found[:2])]


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("softmax_first", r"'0:5xsoftmax' asks for 5 layers from index 0 on, of 4 layers: at most 4"),
        ("softmax_last", r"index -5 is outside the 4 layers"),
        ("sandwich", r"'0:5xsoftmax' asks for 5 layers"),
    ],
)
def test_more_layers_than_there_are_is_refused(preset, message):
    with pytest.raises(ScheduleError, match=message):
        layers(f"schedule={preset}", "schedule.k=5", "model.depth=4")


@pytest.mark.parametrize("k", ["-1", "1.5", "null", "many"])
def test_a_k_that_is_no_count_is_refused(k):
    with pytest.raises(ScheduleError, match=r"schedule\.patch='0:.*(cannot read|unknown)"):
        layers("schedule=softmax_first", f"schedule.k={k}")


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ("0:2xsoftmax", [S, S, A, A]),
        ("-2:2xsoftmax", [A, A, S, S]),
        ("1:2xsoftmax+2:attention", [A, S, A, A]),
        ("1:1xsoftmax", [A, S, A, A]),
        ("3:0xsoftmax", [A, A, A, A]),
        ("0:4xsoftmax", [S, S, S, S]),
        (" 1:2xsoftmax + -1:gqa ", [A, S, S, "gqa"]),
    ],
)
def test_a_patch_of_several_layers(patch, expected):
    assert expand_schedule("attention", 4, A, (A, S, "gqa"), patch) == expected


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("3:2xsoftmax", "asks for 2 layers from index 3 on, of 4 layers: at most 1"),
        ("-1:2xsoftmax", "asks for 2 layers from index -1 on, of 4 layers: at most 1"),
        ("4:0xsoftmax", "index 4 is outside"),
        ("0:2softmax", "cannot read '0:2softmax'; expected INDEX:NAME or INDEX:NxNAME"),
        ("2x0:softmax", "cannot read"),
        ("0:2xnope", "unknown attention 'nope'"),
    ],
)
def test_a_patch_of_several_layers_that_does_not_fit_is_refused(patch, message):
    with pytest.raises(ScheduleError, match=message):
        expand_schedule("attention", 4, A, (A, S), patch)


def test_the_attention_of_a_preset_is_the_chosen_one():
    assert layers("attention=retention", "schedule=sandwich") == [S, "retention", "retention", S]


def test_patterns_and_patches_from_the_command_line_change_a_preset():
    assert layers("schedule=hybrid_1to1", "schedule.patch=0:gqa+-1:mqa") == ["gqa", S, A, "mqa"]
    assert layers("schedule=softmax_first", "schedule.pattern=3xgqa+mqa") == [S, "gqa", "gqa", "mqa"]


def test_two_windows_of_different_width_side_by_side():
    near = ("+mixers.near.name=window", "+mixers.near.window=8", "+mixers.near.sink_tokens=0")
    decoder = built(*near, "mixers.window.window=32", "schedule.pattern=near+window+softmax", "model.depth=4")
    first, second, third, fourth = (block.mixer for block in decoder.layers)
    assert type(first) is type(second) is type(fourth) is WindowAttention and type(third) is SoftmaxAttention
    assert [m.window for m in (first, second, fourth)] == [8, 32, 8]
    assert first.cost(1000).cache_bytes == 8 * 2 * 32 * 2 < second.cost(1000).cache_bytes


def test_two_windows_of_different_width_read_as_far_as_they_say():
    def reach(pattern):
        config = composed(
            "+mixers.near.name=window", "+mixers.near.window=3", "+mixers.near.sink_tokens=0",
            "mixers.window.window=6", "mixers.window.sink_tokens=0", f"schedule.pattern={pattern}", "model.depth=2",
        )  # fmt: skip
        torch.manual_seed(0)
        decoder = Decoder(decoder_config(Architecture.of(config), 10)).eval()
        x = torch.randn(1, 16, 32, requires_grad=True)
        y = x
        for block in decoder.layers:
            y = block(y)
        (gradient,) = torch.autograd.grad(y[0, -1].sum(), x)
        return int((gradient[0].abs().sum(-1) > 0).sum())

    assert reach("near") == 5  # two layers of two tokens back, and the token itself
    assert reach("window") == 11
    assert reach("near+window") == reach("window+near") == 8


def plain(depth=4):
    return DecoderConfig(vocab_size=10, width=32, depth=depth, heads=4, layer_types=["softmax"] * depth)


@pytest.mark.parametrize(
    "overrides",
    [
        *in_ci(
            (("attention=softmax",),),
            (("schedule.pattern=softmax",),),
            (("schedule.pattern=softmax+2xsoftmax",),),
            (("schedule=softmax_first", "schedule.k=4"),),
            (("schedule=sandwich", "schedule.k=2"),),
            (("attention=softmax", "schedule=hybrid_3to1"),),
        ),
        ("schedule.patch=0:softmax+1:softmax+2:softmax+3:softmax",),
        ("+mixers.exact.name=softmax", "schedule.pattern=exact"),
    ],
    ids=" ".join,
)
def test_a_pure_schedule_of_softmax_is_the_plain_model(overrides):
    """Same names of weights, same initial values, same logits and gradients, to the last bit."""
    ids = torch.randint(10, (2, 33))
    found = []
    for config in (plain(), decoder_config(Architecture.of(composed(*overrides)), 10)):
        torch.manual_seed(1)
        decoder = Decoder(config)
        logits = decoder(ids)
        logits.square().sum().backward()
        found.append((decoder.state_dict(), logits, {n: p.grad for n, p in decoder.named_parameters()}))
    (weights, logits, gradients), (other_weights, other_logits, other_gradients) = found
    assert list(weights) == list(other_weights)
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert torch.equal(logits, other_logits)
    assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)


def test_a_hybrid_is_not_the_plain_model():
    torch.manual_seed(1)
    hybrid = Decoder(decoder_config(Architecture.of(composed("schedule=hybrid_3to1")), 10))
    assert list(hybrid.state_dict()) != list(Decoder(plain()).state_dict())


def textbook(heads, *overrides):
    return built("schedule=textbook_hybrid", "model.depth=12", "model.width=256", f"model.heads={heads}", *overrides)


def test_the_textbook_hybrid():
    mixers = [block.mixer for block in textbook(8).layers]
    kinds = [SoftmaxAttention] * 4 + [GroupedQueryAttention] * 4 + [WindowLinearAttention] * 4
    assert [type(m) for m in mixers] == kinds
    assert [m.kv_heads for m in mixers[:8]] == [8] * 4 + [2] * 4
    for mixer in mixers[8:]:
        window, linear = mixer.parts
        assert window.window == 256 and window.heads == linear.heads == 4
    near = layers("schedule=textbook_hybrid", "model.depth=12", "mixers.window256_linear.window=64")
    assert near == [S] * 4 + ["gqa"] * 4 + ["window256_linear"] * 4


@pytest.mark.parametrize("heads", [8, 16, 32])
def test_gqa_of_the_textbook_hybrid_has_a_quarter_of_the_key_heads(heads):
    assert {block.mixer.kv_heads for block in textbook(heads).layers[4:8]} == {heads // 4}


@pytest.mark.parametrize(
    ("heads", "width", "kv_heads"), [(6, 48, 2), (5, 40, 1), *in_ci((4, 32, 2), (2, 32, 2), (10, 80, 2))]
)
def test_where_there_is_no_quarter_gqa_takes_its_own_default(heads, width, kv_heads):
    decoder = textbook(heads, f"model.width={width}")
    assert {block.mixer.kv_heads for block in decoder.layers[4:8]} == {kv_heads}


@pytest.mark.slow
def test_the_key_heads_of_the_textbook_hybrid_can_be_set():
    assert {b.mixer.kv_heads for b in textbook(4, "mixers.gqa.kv_heads=1").layers[4:8]} == {1}
    with pytest.raises(ValueError, match="heads=4 is not divisible by kv_heads=3"):
        textbook(4, "mixers.gqa.kv_heads=3")


@pytest.mark.parametrize(("depth", "counts"), [(4, (4, 0, 0)), (6, (4, 2, 0)), (14, (6, 4, 4)), (24, (8, 8, 8))])
def test_the_textbook_hybrid_at_other_depths_is_cut_or_cycled(depth, counts):
    found = layers("schedule=textbook_hybrid", f"model.depth={depth}")
    assert tuple(map(found.count, (S, "gqa", "window256_linear"))) == counts


def test_an_entry_that_says_no_mixer_is_refused():
    with pytest.raises(ValueError, match="near"):
        built("+mixers.near.window=8", "schedule.pattern=near")
