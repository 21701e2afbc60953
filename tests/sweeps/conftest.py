"""A small sweep that has been read."""

import pytest

from tests.sweeps.sweep_folder import write_sweep
from zoo.sweeps.page.analysis import analyze
from zoo.sweeps.page.read import read_sweep


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """Analysis of three arms with three seeds."""
    return analyze(read_sweep(write_sweep(tmp_path_factory.mktemp("sweep"))))
