"""Starting from the weights of another run: whose configuration it has, and which weights fit."""

import pytest
import torch
from omegaconf import OmegaConf

from tests.evaluation.tiny_run import make_run, save_checkpoint, small_decoder
from tests.tiers import in_ci
from zoo.config import ConfigError
from zoo.model import CheckpointError, Decoder
from zoo.options.continued import initial_config
from zoo.training.initial import load_initial


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path, small_decoder(("gqa", "lightning")))


@pytest.fixture
def saved(run, small):
    """A run folder whose configuration is a whole one."""
    config = small("attention=gqa", "mixers.gqa.kv_heads=1", "trainer.max_tokens=4096", "optimizer.lr=0.5", "seed=7")
    OmegaConf.save(config, run / "config.yaml", resolve=True)
    return run


def started(small, saved, *overrides):
    overrides = [f"init='{saved}'", *overrides]
    return initial_config(small(*(o for o in overrides if not o.startswith("init")), f"++init='{saved}'"), overrides)


def test_the_configuration_is_that_of_the_run_and_of_the_command_line(small, saved):
    config = started(small, saved)
    assert (config.attention, config.mixers.gqa.kv_heads, config.optimizer.lr, config.seed) == ("gqa", 1, 0.5, 7)
    assert config.trainer.max_tokens == 4096 and config.init == str(saved) and config.resume is None
    config = started(small, saved, "trainer.max_steps=9", "optimizer=adamw", "data/recall=mix", "data.recall.share=0.3")
    assert (config.trainer.max_steps, config.trainer.max_tokens, config.optimizer.name) == (9, None, "adamw")
    assert config.optimizer.lr != 0.5 and config.data.recall.share == 0.3 and config.data.length == 32


@pytest.mark.parametrize(
    "override",
    [
        "model.width=64",
        "tokenizer=bpe",
        *in_ci("model=nano", "attention=mqa", "mixers.gqa.kv_heads=2", "schedule=hybrid_1to1"),
    ],
)
def test_what_the_weights_fix_cannot_be_changed(small, saved, override):
    with pytest.raises(ConfigError, match=rf"^{override.partition('=')[0]} cannot be changed"):
        started(small, saved, override)


def test_weights_are_those_of_the_run(run):
    decoder, other = small_decoder(("gqa", "lightning")), small_decoder(("gqa", "lightning"), seed=1)
    assert not torch.equal(other.head.weight, decoder.head.weight)
    load_initial(other, run)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in decoder.state_dict().items())


def test_the_first_weight_that_does_not_fit_is_named(run):
    narrow = small_decoder(("mqa", "lightning"))
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mixer.key.weight is \(16, 16\) there and \(8, 16\) here"):
        load_initial(narrow, run)
    with pytest.raises(CheckpointError, match=r"blocks\.1\S+ is \(.*\) there and none here"):
        load_initial(small_decoder(("gqa",)), run)
    with pytest.raises(CheckpointError, match="no checkpoint 'best'"):
        load_initial(narrow, run, "best")
    save_checkpoint(run / "checkpoints" / "last.ckpt", narrow)
    load_initial(Decoder(narrow.config), run)
