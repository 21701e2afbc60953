import pytest

from tests.evaluation.display.test_plots import is_drawn
from tests.evaluation.tiny_run import make_run
from tests.tiers import in_ci
from zoo.evaluation.display.perplexity_plots import plot_context, plot_position
from zoo.evaluation.tasks.perplexity_context import PerplexityContextTask
from zoo.evaluation.tasks.perplexity_position import PerplexityPositionTask
from zoo.runs.loaded_run import open_run

TEXTS = {"train": ["one two three\n" * 20], "test": ["abc def\n" * 9, "Größe: 42 µm, 水 🎉\n" * 4]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(make_run(tmp_path_factory.mktemp("curves"), texts=TEXTS))


def records_of(outcome):
    return [record.model_dump() for record in outcome.records]


@pytest.mark.parametrize("lengths", [*in_ci([4], [4, 8]), [4, 8, 16, 32]])
def test_context_of_one_run_and_of_several(run, tmp_path, lengths):
    records = records_of(PerplexityContextTask(lengths=lengths, target=4).evaluate(run.subject, 0))
    for runs in ([("one", records)], [("one", records), ("two", records[:3]), ("none", [])]):
        assert plot_context(tmp_path / "a.png", runs, "title", 16)
        assert is_drawn(tmp_path / "a.png")


@pytest.mark.parametrize(
    "options", [*in_ci({}, {"length": 64, "bucket": 4}), {"length": 64, "bucket": 4, "max_documents": 1}]
)
def test_position_of_one_run_and_of_several(run, tmp_path, options):
    records = records_of(PerplexityPositionTask(**options).evaluate(run.subject, 0))
    for runs in ([("one", records)], [("one", records), ("two", records[:2]), ("none", [])]):
        assert plot_position(tmp_path / "a.png", runs, "title")
        assert is_drawn(tmp_path / "a.png")


def test_records_of_other_tasks_are_not_drawn(run, tmp_path):
    position = records_of(PerplexityPositionTask().evaluate(run.subject, 0))
    context = records_of(PerplexityContextTask(lengths=[4], target=4).evaluate(run.subject, 0))
    empty = [record | {"value": None, "ci95": None} for record in position + context]
    for records in ([], empty, position):
        assert not plot_context(tmp_path / "a.png", [("one", records)], "title")
    for records in ([], empty, context):
        assert not plot_position(tmp_path / "a.png", [("one", records)], "title")
    assert not plot_position(tmp_path / "a.png", [], "title")
    assert list(tmp_path.iterdir()) == []
