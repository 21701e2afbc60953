"""What pictures of recall show, read from their axes."""

import numpy as np
import pytest

from zoo.evaluation.display import recall_plots as grids


@pytest.fixture
def figures(monkeypatch):
    kept = []
    monkeypatch.setattr(grids, "save_figure", lambda file, figure: kept.append(figure) or [file])
    return kept


def record(variant, length, depth, value, n=8, metric="exact_match", **more):
    return {
        "task": "niah",
        "variant": variant,
        "length": length,
        "depth": depth,
        "metric": metric,
        "value": value,
        "ci95": (max(0, value - 0.1), min(1, value + 0.1)),
        "n": n,
        "chance": None,
        **more,
    }


def test_every_cell_of_a_heat_map_has_its_value_and_n(figures, tmp_path):
    values = {(length, depth): length / 2000 + depth / 4 for length in (256, 1024) for depth in (0.0, 0.5, 1.0)}
    records = [record("single", *place, value, n=5 + place[0]) for place, value in reversed(values.items())]
    records += [record("single", 256, None, 0.9), record("single/no_context", 0, None, 0.1)]  # pooled, and a baseline
    assert grids.plot_depths(tmp_path / "a.png", records, "a run: niah")
    (axes,) = figures[0].axes
    grid = np.asarray(axes.images[0].get_array())
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["256", "1,024"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0%", "50%", "100%"]
    shown = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert len(shown) == 6
    for column, length in enumerate((256, 1024)):
        for row, depth in enumerate((0.0, 0.5, 1.0)):
            assert grid[row, column] == pytest.approx(values[length, depth])
            assert shown[column, row] == f"{values[length, depth]:.2f}\nn={5 + length}"


def test_variants_without_a_depth_are_lines_with_their_chance(figures, tmp_path):
    records = [record("pairs8", n, None, n / 1000, metric="accuracy", chance=0.125) for n in (512, 256)]
    records += [record("pairs8", n, None, 0.01) for n in (512, 256)]  # all pairs of a sample right: not what is drawn
    records += [record("pairs8", n, None, n / 600, metric="rank_accuracy", chance=0.25) for n in (512, 256)]
    assert grids.plot_depths(tmp_path / "a.png", records, "a run: mqar")
    right, rank = figures[0].axes
    for axes, scale, chance in ((right, 1000, 0.125), (rank, 600, 0.25)):
        line, dotted = axes.get_lines()
        assert line.get_xydata().tolist() == [[256, pytest.approx(256 / scale)], [512, pytest.approx(512 / scale)]]
        assert set(dotted.get_ydata()) == {chance} and dotted.get_linestyle() == ":"
    assert right.get_title() == grids.RIGHT and rank.get_title() == grids.RANK


def test_nothing_to_draw_is_no_picture(figures, tmp_path):
    assert not grids.plot_depths(tmp_path / "a.png", [record("single/no_context", 0, None, 0.5)], "t")
    assert not grids.plot_costs(tmp_path / "a.png", [], "t")
    assert figures == []


def test_accuracy_stands_over_the_bytes_of_state_and_keys(figures, tmp_path):
    def content(values, state, per_token):
        model = {
            "state_bytes@L": {str(n): state for n in values},
            "kv_bytes@L": {str(n): per_token * n for n in values},
        }
        return {"model": model, "results": [record("single", n, None, value) for n, value in values.items()]}

    runs = [("linear", content({256: 0.5, 512: 0.25}, 4096, 0)), ("softmax", content({256: 1.0, 512: 0.75}, 0, 100))]
    assert grids.plot_costs(tmp_path / "a.png", runs, "niah")
    (axes,) = figures[0].axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert lines == {"linear": [[4096, 0.5], [4096, 0.25]], "softmax": [[25_600, 1.0], [51_200, 0.75]]}
    assert sorted(text.get_text() for text in axes.texts) == ["256", "256", "512", "512"]
    assert axes.get_xscale() == "log"
