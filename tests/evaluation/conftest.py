import pytest

from tests.evaluation.tiny_run import make_run


@pytest.fixture
def run_folder(tmp_path):
    return make_run(tmp_path)
