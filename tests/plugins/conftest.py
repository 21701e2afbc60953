"""A package from outside on the path, and none of it left behind."""

import sys

import pytest

from tests.plugins.outside import write_package
from zoo import plugins, registry
from zoo.config import register_mixers
from zoo.options import choices

REGISTRIES = [found for found in vars(registry).values() if isinstance(found, registry.Registry)]


@pytest.fixture
def clean(monkeypatch, tmp_path):
    """The state of imports as it was: registries, plugins, modules, the current folder and the path."""
    for each in REGISTRIES:
        each.names()  # what is inside stays
        monkeypatch.setattr(each, "_entries", dict(each._entries))
        monkeypatch.setattr(each, "_options", dict(each._options))
    monkeypatch.setattr(plugins, "_named", [])
    monkeypatch.setattr(registry, "_from_entry_points", [])
    monkeypatch.setattr(choices, "_registered", None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("zoo.", "torch", "lightning", "numpy")):
            del sys.modules[name]
    _forget_nodes()


def _forget_nodes():
    """Choices that Hydra has been told of."""
    from hydra.core.config_store import ConfigStore

    for group in choices.GROUPS:
        ConfigStore.instance().repo.pop(group, None)
    register_mixers()  # without those of the package


@pytest.fixture
def outside(clean, tmp_path):
    """The folder that the package lies in, which is the current one."""
    return write_package(tmp_path)
