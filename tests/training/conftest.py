"""Small real runs: configurations composed as the command line does, on a text of a few kilobytes."""

import random
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from zoo.config import CONFIGS, register_mixers

WORDS = ("attention", "layer", "reads", "what", "came", "before", "never", "after", "while", "state", "decays", "the")


def write_text(folder: Path) -> Path:
    """Forty documents of random words, the same every time."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(40):
        (folder / f"{i:02}.txt").write_text(" ".join(draw.choices(WORDS, k=120)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "documents")


@pytest.fixture(scope="session")
def small_overrides(text_folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return [
        "experiment=tiny",
        "data=text",
        f"data.path={text_folder}",
        f"data.cache_dir={cache}",
        "data.length=32",
        "model.width=32",
        "trainer.accelerator=cpu",
    ]


@pytest.fixture
def small(small_overrides):
    """Function that composes the configuration of a small run with further overrides."""

    def make(*overrides):
        register_mixers()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train", [*small_overrides, *overrides])

    return make
