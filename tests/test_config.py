"""The configuration files of the mixers say what their constructors say."""

from __future__ import annotations

import inspect

import pytest
import yaml

import zoo
from zoo.config import CONFIGS

FILES = sorted((CONFIGS / "attention").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_file_lists_every_option_of_its_mixer_with_its_default(file):
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert content["attention"] == file.stem
    assert list(content["mixers"]) == [file.stem]
    options = content["mixers"][file.stem]
    parameters = inspect.signature(zoo.mixers.get(file.stem).__init__).parameters
    assert options == {name: parameters[name].default for name in zoo.mixers.option_names(file.stem)}
    mixer = zoo.mixers.build(file.stem, width=32, heads=4, **options)
    assert type(mixer) is zoo.mixers.get(file.stem)


def test_every_mixer_has_a_file():
    assert [f.stem for f in FILES] == zoo.mixers.names()
