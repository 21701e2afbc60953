"""A small sweep that has been read."""

import pytest

from tests.ablation.sweep_folder import write_sweep
from zoo.ablation.report.analysis import analyse
from zoo.ablation.report.read import read_sweep


@pytest.fixture(scope="module")
def standard(tmp_path_factory):
    """Analysis of three arms with three seeds."""
    return analyse(read_sweep(write_sweep(tmp_path_factory.mktemp("sweep"))))
