"""Every file of configs/ composes, is taken as it is and builds; the command line reaches what it names."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from tests.tiers import in_ci
from zoo.config import CONFIGS, ConfigError, load_run_config, register_mixers, to_dict
from zoo.data.documents import DataError
from zoo.data.sources.build import build_source
from zoo.model import Decoder
from zoo.model.from_config import Architecture, decoder_config
from zoo.options.budget import step_budget
from zoo.options.train import normalize, read_config
from zoo.registry import OPTIMIZERS
from zoo.training.optimizers.build import rate_factor
from zoo.training.strategies import build_strategy

GROUPS = (
    "attention",
    "schedule",
    "match",
    "model",
    "data",
    "tokenizer",
    "optimizer",
    "trainer",
    "logger",
    "experiment",
)
SIZES = {"nano": (2e6, 6e6), "125m": (100e6, 150e6), "350m": (300e6, 400e6), "1b": (0.9e9, 1.3e9)}


def composed(*overrides):
    register_mixers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides))


def files(group):
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml") if p.stem != "base")


@pytest.mark.parametrize(
    ("group", "name"),
    [("attention", n) for n in files("attention")]
    + in_ci(*((g, n) for g in GROUPS for n in files(g) if g != "attention")),
)
def test_every_file_composes_and_builds(group, name):
    needed = {"text": ["data.path=books"], "fsdp": ["optimizer=adamw"]}
    config = composed(f"{group}={name}", *needed.get(name, []))
    assert to_dict(normalize(config, read_config(config))) == to_dict(config)
    assert step_budget(config.trainer, config.data.length) > 0
    with torch.device("meta"):
        Decoder(decoder_config(Architecture.of(config), 1000))
    assert config.optimizer.name in OPTIMIZERS
    options = {k: config.optimizer[k] for k in ("schedule", "warmup_steps", "decay_fraction", "final_factor")}
    assert 0 < rate_factor(0, 100, **options) <= 1
    build_strategy(config.trainer.strategy)
    assert build_source(to_dict(config.data.source)).name


@pytest.mark.parametrize("name", files("model"))
@pytest.mark.parametrize("style", ["llama", *in_ci("transnormer")])
def test_sizes_are_what_their_names_say(name, style):
    config = composed(f"model={name}", f"model.style={style}", "attention=softmax")
    with torch.device("meta"):
        decoder = Decoder(decoder_config(Architecture.of(config), 4096 if name == "nano" else 50257))
    low, high = SIZES[name]
    assert low <= sum(p.numel() for p in decoder.parameters()) <= high


def test_attention_options_are_one_place_whoever_uses_them():
    config = composed("attention=gqa", "mixers.lightning.decay=paper", "schedule.pattern=attention+lightning")
    built = decoder_config(Architecture.of(config), 10)
    assert built.layer_types == ["gqa", "lightning"] * 2 and built.mixers["lightning"]["decay"] == "paper"


def test_an_unknown_attention_says_what_exists():
    with pytest.raises(Exception, match=r"nope[\s\S]*lightning") as raised:
        composed("attention=nope")
    assert "softmax" in str(raised.value)
    with pytest.raises(ConfigCompositionException, match="widnow"):
        composed("mixers.softmax.widnow=3")


@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "zoolander.Evil", "builtins.eval"])
def test_a_source_is_a_registered_name_and_nothing_else(target):
    with pytest.raises(ValueError, match=f"unknown data source '{target}': expected one of hub, stdlib, text"):
        build_source({"kind": target})
    with pytest.raises(DataError, match="has no kind: expected one of hub, stdlib, text"):
        build_source({"_target_": target})


def test_a_damaged_run_configuration_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.yaml"):
        load_run_config(tmp_path)
    for text, message in (
        ("a: [", "is damaged"),
        ("a: 1", "not the configuration of a run"),
        ("!!python/name:os.system {}", "is damaged"),
    ):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_run_config(tmp_path)
