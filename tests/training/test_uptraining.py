"""A trained run, converted, and trained on: whole or gradually, stopped and continued."""

import pytest
import torch

from tests.training.test_resume import assert_same_run, stop_at, weights
from zoo.config import ConfigError
from zoo.conversion.convert_run import convert_run
from zoo.files import read_metrics
from zoo.options.continued import initial_config, resumed_config
from zoo.runs.loaded_run import open_run
from zoo.training.callbacks import Interrupted
from zoo.training.run import train

MODEL = ["attention=softmax", "model.heads=4", "schedule.pattern=softmax+lightning"]
SHARED = ["share_heads.kv_heads=2", "share_heads.method=svd", "share_heads.steps=12"]


@pytest.fixture(scope="module")
def trained(small_overrides, tmp_path_factory):
    from hydra import compose, initialize_config_dir

    from zoo.config import CONFIGS, register_mixers

    register_mixers()
    folder = tmp_path_factory.mktemp("runs") / "mha, with=signs"
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        train(compose("train", [*small_overrides, *MODEL]), folder)
    return folder


def started(small, run, *overrides):
    overrides = [f"init='{run}'", *overrides]
    return initial_config(small(*overrides), overrides)


def first_loss(folder):
    return next(row["train/loss"] for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row)


@pytest.mark.slow
def test_up_training_starts_where_the_conversion_ended(small, trained, tmp_path):
    done = convert_run(open_run(trained), "gqa", 2, "svd", tmp_path / "converted")
    train(started(small, done.folder, "trainer.max_steps=3"), tmp_path / "more")
    train(small(*MODEL, "trainer.max_steps=3"), tmp_path / "fresh")
    assert first_loss(tmp_path / "more") < first_loss(tmp_path / "fresh") - 0.5
    more = open_run(tmp_path / "more")
    assert more.decoder.config == open_run(done.folder).decoder.config and more.trained.step == 3
    assert first_loss(tmp_path / "more") > read_metrics(trained / "metrics.jsonl")[-2]["train/loss"] - 0.5
    with pytest.raises(ConfigError, match=r"weights only.*init=RUN_DIR"):
        train(resumed_config(small(f"resume='{done.folder}'"), []), done.folder)


@pytest.mark.slow
def test_gradual_sharing_ends_in_a_model_that_converts_exactly_and_survives_a_stop(
    small, trained, tmp_path, monkeypatch
):
    options = ["trainer.max_steps=14", "trainer.micro_batch_size=2", *SHARED]
    train(started(small, trained, *options), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 13, 15)
        with pytest.raises(Interrupted):
            train(started(small, trained, *options), tmp_path / "parts")
    config = resumed_config(small(f"resume='{tmp_path / 'parts'}'"), [f"resume={tmp_path / 'parts'}"])
    train(config, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    run = open_run(tmp_path / "whole")
    done = convert_run(run, "gqa", 2, "svd")
    assert max(done.errors["svd"][0].keys, done.errors["svd"][0].values) < 1e-6 < done.errors["mean"][0].values
    ids = torch.randint(0, 256, (2, 32))
    torch.testing.assert_close(open_run(done.folder).decoder(ids), run.decoder(ids), rtol=0, atol=1e-4)
    assert not torch.equal(*(weights(f)["decoder.embedding.weight"] for f in (trained, tmp_path / "whole")))
