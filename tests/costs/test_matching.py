"""Matching: what is solved, how near it comes, and what is refused. Everything on decoders without memory."""

from __future__ import annotations

import copy

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import zoo
from tests.evaluation.tiny_run import write_texts
from tests.tiers import in_ci
from zoo.config import CONFIGS, ConfigError, load_run_config, register_mixers
from zoo.costs.matching import MLP, match_config
from zoo.model import Decoder
from zoo.model.from_config import Architecture, decoder_config
from zoo.options.continued import resumed_config
from zoo.training.run import train

VOCABULARY = 2048


def composed(*overrides):
    register_mixers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides))


@pytest.fixture(scope="module")
def nano():
    """Function that gives the configuration of a nano model with one attention, and a quantity to match."""
    base = composed("match=params")

    def make(attention, quantity="params", **values):
        config = copy.deepcopy(base)
        config.attention, config.match.quantity = attention, quantity
        for key, value in values.items():
            OmegaConf.update(config, key.replace("__", "."), value, force_add=True)
        return config

    return make


def decoder(config, vocabulary=VOCABULARY):
    with torch.device("meta"):
        return Decoder(decoder_config(Architecture.of(config), vocabulary))


def counted(config, quantity, context=512):
    """The quantity, parameters as they are and not as cost() says."""
    model = decoder(config)
    if quantity == "params":
        return sum(p.numel() for p in model.parameters())
    cost = model.cost(context)
    return {"flops": cost.flops_per_token, "cache": cost.cache_bytes}[quantity]


@pytest.mark.parametrize("quantity", [*in_ci("params"), "flops"])
@pytest.mark.parametrize(
    "name", ["lightning", "window", *in_ci(*sorted({*zoo.mixers.names()} - {"lightning", "window"}))]
)
def test_every_attention_is_matched_to_softmax(nano, name, quantity):
    config = nano(name, quantity)
    target, before = counted(nano("softmax"), quantity), counted(config, quantity)
    config, result = match_config(config, VOCABULARY)
    after = counted(config, quantity)
    assert abs(after - target) <= 0.01 * target
    assert abs(after - target) <= abs(before - target)
    assert (result.reference_value, result.before, result.after) == (target, before, after)
    assert result.ratio == after / target
    assert (result.changed == {}) == (config.model.mlp_width is None)
    width = decoder_config(Architecture.of(config), 10).hidden_width()
    assert width % 8 == 0
    for neighbor in (width - 8, width + 8):
        config.model.mlp_width = neighbor
        assert abs(counted(config, quantity) - target) >= abs(after - target)


@pytest.mark.parametrize("quantity", ["params", "flops"])
@pytest.mark.parametrize(
    "options", [{"head_dim": 24, "value_dim": 96}, *in_ci({"value_dim": 64}, {"head_dim": 8})], ids=str
)
def test_the_mlp_makes_up_for_wider_and_narrower_heads(nano, options, quantity):
    config = nano("retention", quantity, **{f"mixers__retention__{key}": value for key, value in options.items()})
    target, before = counted(nano("softmax"), quantity), counted(config, quantity)
    config.match.reference = OmegaConf.create({"attention": "softmax"})
    matched, _ = match_config(config, VOCABULARY)
    assert abs(counted(matched, quantity) - target) <= 0.01 * target < abs(before - target)


@pytest.mark.parametrize("quantity", ["params", "flops"])
def test_the_reference_itself_is_left_alone(nano, quantity):
    config = nano("softmax", quantity)
    as_it_was = copy.deepcopy(config)
    matched, result = match_config(config, VOCABULARY)
    assert matched == config == as_it_was
    assert result.changed == {} and result.ratio == 1 and result.before == result.after
    assert result.line().startswith(f"match     {MLP} stays: ") and "(0.00 % off)" in result.line()


def test_nothing_is_matched_unless_asked(nano):
    config = nano("lightning", None)
    as_it_was = copy.deepcopy(config)
    assert match_config(config, VOCABULARY) == (as_it_was, None)
    assert composed().match.quantity is None
    assert match_config(OmegaConf.create({"seed": 0}))[1] is None  # a run of before there was matching


@pytest.mark.parametrize(("step", "width"), [(3, 618), *in_ci((None, 616), (1, 619), (200, None), (64, None))])
def test_multiples_of_the_step_are_tried(nano, step, width):
    """Lightning has a projection more: 4 x 256 x 256 parameters, which 3 x 256 x 4 of each MLP width make up for."""
    config = nano("lightning", match__step=step)
    if width is None:
        with pytest.raises(ConfigError, match=r"the nearest, 6[04]0, has .* % off; name another"):
            match_config(config, VOCABULARY)
        return
    config, result = match_config(config, VOCABULARY)
    assert result.changed == {MLP: (704, width)} and config.model.mlp_width == width


def test_single_widths_are_tried_where_multiples_of_8_are_too_coarse(nano):
    config = nano("lightning", match__tolerance=0.001)
    config, result = match_config(config, VOCABULARY)
    assert config.model.mlp_width == 619 and abs(result.ratio - 1) < 0.001
    with pytest.raises(ConfigError, match=r"no model\.mlp_width comes within 0\.00 % of the reference's 3,737,856"):
        match_config(nano("lightning", match__tolerance=0), VOCABULARY)


def test_what_is_printed(nano):
    line = match_config(nano("lightning"), VOCABULARY)[1].line()
    expected = "model.mlp_width 704 -> 616: 3,729,920 parameters, reference 3,737,856 (0.21 % off)"
    assert line == f"match     {expected}"
    flops = match_config(nano("mqa", "flops"), VOCABULARY)[1].line()
    assert "704 -> 832: 8,521,728 FLOP per token forward at 512 tokens, reference 8,521,728" in flops


@pytest.mark.parametrize("quantity", [*in_ci("params"), "flops"])
def test_matching_again_changes_nothing(nano, quantity):
    config = nano("ssd", quantity)
    as_it_was = copy.deepcopy(config)
    once, first = match_config(config, VOCABULARY)
    twice, second = match_config(once, VOCABULARY)
    assert first.changed and second.changed == {} and twice == once and config == as_it_was
    assert second.reference_value == first.reference_value and second.after == first.after
    saved = OmegaConf.create(yaml.safe_load(OmegaConf.to_yaml(once, resolve=True)))  # as a run's config.yaml
    again, third = match_config(saved, VOCABULARY)
    assert third.changed == {} and again.model.mlp_width == once.model.mlp_width


@pytest.mark.slow
def test_all_arms_of_a_sweep_have_one_reference(nano):
    """Even where an arm has set the knob: the reference then has that value too, unless match.reference says more."""
    patterns = ("softmax", "3xlightning+softmax", "lightning+gqa", "lightning")
    results = [match_config(nano("lightning", schedule__pattern=p), VOCABULARY)[1] for p in patterns]
    assert {r.reference_value for r in results} == {3_737_856}
    assert all(abs(r.ratio - 1) <= 0.01 for r in results)
    fixed = nano("lightning", model__mlp_width=500, match__reference__model__mlp_width=704)
    _, result = match_config(fixed, VOCABULARY)
    assert result.reference_value == 3_737_856 and result.changed == {MLP: (500, 616)}
    assert match_config(nano("softmax", model__mlp_width=500), VOCABULARY)[1].changed == {}


@pytest.mark.slow
def test_without_a_vocabulary_the_same_width_is_found(nano):
    for name in ("lightning", "mqa"):
        known, _ = match_config(nano(name), VOCABULARY)
        unknown, result = match_config(nano(name))
        assert known.model.mlp_width == unknown.model.mlp_width
        assert result.after == sum(p.numel() for p in decoder(unknown, 1).parameters())


def test_the_vocabulary_is_asked_for_where_embeddings_differ(nano):
    for values in (
        {"match__knob": "model.width"},
        {"match__reference__model__width": 128},
        {"match__reference__model__tie_embeddings": False},
    ):
        with pytest.raises(ConfigError, match="vocabulary must be known"):
            match_config(nano("lightning", **values))
    config = nano("lightning", match__knob="model.width")
    config, result = match_config(config, VOCABULARY)
    assert abs(counted(config, "params") / counted(nano("softmax"), "params") - 1) <= 0.01
    assert config.model.width % config.model.heads == 0 and result.changed["model.width"][0] == 256


def test_untied_embeddings_count_twice(nano):
    config = nano("lightning", match__reference__model__tie_embeddings=False)
    config, result = match_config(config, VOCABULARY)
    assert result.reference_value == 3_737_856 + 2048 * 256 and abs(result.ratio - 1) <= 0.01


def test_cache_by_the_window(nano):
    config = nano("window", "cache", match__knob="mixers.window.window", match__reference__attention="mqa")
    config, result = match_config(config, VOCABULARY)
    window = config.mixers.window.window
    assert result.changed == {"mixers.window.window": (256, window)} and abs(result.ratio - 1) <= 0.01
    assert counted(nano("mqa"), "cache") == result.reference_value
    assert window + 4 == 512 // 4  # the window and its 4 sinks keep 4 key heads where mqa keeps 1 of all 512
    assert "bytes of cache at 512 tokens" in result.line()


def test_the_context_is_what_match_says(nano):
    values = {"match__knob": "mixers.window.window", "match__reference__attention": "mqa", "match__context": 4096}
    config = nano("window", "cache", **values)
    config, result = match_config(config, VOCABULARY)
    assert config.mixers.window.window == 1020 and result.context == 4096
    assert counted(config, "cache", 4096) == counted(nano("mqa"), "cache", 4096)


@pytest.mark.parametrize(("reference", "kv_heads"), [("mqa", 1), ("softmax", 4)])
def test_cache_by_key_heads_which_not_every_number_fits(nano, reference, kv_heads):
    config = nano("gqa", "cache", match__knob="mixers.gqa.kv_heads", match__reference__attention=reference)
    config, result = match_config(config, VOCABULARY)
    assert result.line().startswith(f"match     mixers.gqa.kv_heads null -> {kv_heads}: ")
    assert config.mixers.gqa.kv_heads == kv_heads
    assert match_config(config, VOCABULARY)[1].changed == {}


def test_flops_by_features(nano):
    config = nano("performer", "flops", match__knob="mixers.performer.features")
    config, result = match_config(config, VOCABULARY)
    best = config.mixers.performer.features
    for features in range(best - 2, best + 3):
        config.mixers.performer.features = features
        assert abs(counted(config, "flops") - result.reference_value) >= abs(result.after - result.reference_value)


def test_an_entry_of_the_schedule_can_be_the_knob(nano):
    config = nano("softmax", "cache", schedule__pattern="near+softmax", mixers__near={"name": "window", "window": 8})
    config.match.knob = "mixers.near.window"
    config.match.reference = {"attention": "gqa", "schedule": {"pattern": "gqa", "patch": None}}
    config.match.tolerance = (
        0.001  # gqa keeps half of softmax, as much as the softmax layers, so nothing is left for near
    )
    with pytest.raises(ConfigError, match=r"mixers\.near\.window .* the nearest, 1 \(the smallest\)"):
        match_config(config, VOCABULARY)
    config.match.tolerance = 0.01
    config, result = match_config(config, VOCABULARY)
    assert result.ratio <= 1.01 and config.mixers.near.window == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"match__quantity": "cache"},
            r"model\.mlp_width does not change the bytes of cache, which are .* match\.knob=",
        ),
        (
            {"match__quantity": "cache", "match__knob": "mixers.gqa.kv_heads"},
            r"does not change .*no layer is a gqa: they are lightning",
        ),
        ({"match__knob": "trainer.batch_size"}, "does not change the parameters"),
        (
            {"match__reference__model__mlp_width": 1},
            r"no model\.mlp_width comes within 1\.00 % .* the nearest, 1 \(the smallest\), has 1,840,640, 16\.63 % off",
        ),
        ({"match__knob": "model.depth"}, "the nearest, 4, has 4,000,256, 7.02 % off"),
        ({"match__knob": "model.nope"}, r"match\.knob=model\.nope: the configuration has no such value"),
        ({"match__knob": "nope.nope"}, "no such value"),
        ({"match__knob": None}, r"match\.knob=null: the configuration has no such value"),
        ({"match__knob": "model.style"}, "is 'llama': expected the path of a whole number"),
        ({"match__knob": "model.tie_embeddings"}, "is True: expected the path of a whole number"),
        ({"match__knob": "mixers.linear.rope_theta"}, "is 10000.0: expected the path of a whole number"),
        ({"match__knob": "model"}, "expected the path of a whole number"),
        (
            {"match__reference": {"schedule": "uniform"}},
            r"match\.reference\.schedule='uniform': expected values below it",
        ),
        ({"match__reference": {"model": {"widht": 1}}}, "match.reference does not fit: .*widht"),
        ({"match__reference": {"attention": "nope"}}, "match.reference cannot be built: .*unknown attention 'nope'"),
        ({"match__reference": {"model": {"heads": 7}}}, "match.reference cannot be built: .*heads=7"),
    ],
)
def test_refusals(nano, values, message):
    config = nano("lightning", **values)
    as_it_was = copy.deepcopy(config)
    with pytest.raises(ConfigError, match=message):
        match_config(config, VOCABULARY)
    assert config == as_it_was


@pytest.mark.slow
def test_matching_draws_no_random_number(nano):
    state = torch.get_rng_state()
    for name in ("performer", "bigbird", "learned_sparse", "lightning"):
        match_config(nano(name, "flops"), VOCABULARY)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.slow
def test_a_run_keeps_what_was_solved(tmp_path, capsys):
    """Its folder has the value and so has its decoder; a resumed run does not match again."""
    write_texts(tmp_path / "text")
    sizes = ("experiment=tiny", "data=text", f"data.path={tmp_path / 'text'}", f"data.cache_dir={tmp_path / 'cache'}")
    steps = ("data.length=16", "trainer.max_steps=2", "trainer.checkpoint_every=1", "trainer.accelerator=cpu")
    folder = tmp_path / "run"
    train(composed("match=params", "attention=lightning", *sizes, *steps), folder)
    assert capsys.readouterr().out.count("model.mlp_width 192 -> 168: ") == 1
    saved = load_run_config(folder)
    assert saved.model.mlp_width == 168 and saved.match.reference.model.mlp_width is None
    reference = composed(*sizes, *steps, "attention=softmax")
    vocabulary = zoo.load(folder).config.vocab_size
    assert zoo.load(folder).config.mlp_width == 168
    assert (
        abs(decoder(saved, vocabulary).cost(16).parameters / decoder(reference, vocabulary).cost(16).parameters - 1)
        < 0.01
    )
    resume = composed(f"resume={folder}", "trainer.max_steps=3")
    train(resumed_config(resume, ["trainer.max_steps=3"]), folder)
    assert "match  " not in capsys.readouterr().out
    assert zoo.load(folder).config.mlp_width == 168 == load_run_config(folder).model.mlp_width
