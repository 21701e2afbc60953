import pytest
from matplotlib.image import imread

from zoo.evaluation.display.training_plots import plot_documents, plot_training
from zoo.files import read_metrics

METRICS = [{"tokens": 10 * n, "train/bits_per_byte": 8 / n} for n in range(1, 30)]


def is_drawn(file):
    picture = imread(file)
    return picture.shape[0] > 300 and picture.std() > 0.01


def test_metrics_are_read_past_lines_that_are_cut_off(run_folder, tmp_path):
    metrics = read_metrics(run_folder / "metrics.jsonl")
    assert len(metrics) == 8
    assert read_metrics(tmp_path / "no such file") == []


@pytest.mark.parametrize("part", ["train", "val"])
def test_training_curves_need_only_one_of_training_and_validation(tmp_path, part):
    metrics = [{"tokens": n, f"{part}/bits_per_byte": 1 + 1 / n} for n in (1, 2, 2)]
    assert plot_training(tmp_path / "a.png", metrics, "title", {"text (test)": 1.25})
    assert is_drawn(tmp_path / "a.png")


def test_what_cannot_be_drawn_is_left_out(tmp_path):
    nothing = [{"tokens": 1, "train/loss": 3.0}, {"tokens": 2, "train/bits_per_byte": float("nan")}]
    assert not plot_training(tmp_path / "a.png", nothing, "title", {})
    assert not plot_documents(tmp_path / "a.png", [], "title", 1.0, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sizes", [[9], [9, 9], [3, 50, 4000, 9_000_000]])
def test_documents_of_any_number_and_size_are_drawn(tmp_path, sizes):
    samples = [{"bytes": size, "nats": size * 0.9} for size in sizes]
    assert plot_documents(tmp_path / "a.png", samples, "title", 1.3, (1.2, 1.4))
    assert is_drawn(tmp_path / "a.png")
