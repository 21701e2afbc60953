"""scripts/compare.py: pictures of one data set and of several, with speeds and without."""

import math

import pytest

from zoo.commands import compare

RUN = {"parameters": 9, "bits": 2.0, "ci95": None, "tokens": 100, "cache": 8, "short_cache": 4, "rate": math.nan}


def run(data, attention, curve):
    return {**RUN, "data": data, "attention": attention, "curve": curve}


@pytest.mark.parametrize("sets", [("wiki",), ("wiki", "books")])
@pytest.mark.parametrize("contexts", [(), (512, 1024)])
def test_a_picture_has_a_panel_per_data_set_and_one_of_speeds(tmp_path, monkeypatch, sets, contexts):
    runs = [run(name, "softmax", [(100, 3.0), (200, 2.5)]) for name in sets] + [run(sets[0], "gqa", [])]
    speed = [compare.Speed(attention="softmax", context=context, tokens_per_second=5.0) for context in contexts]
    drawn = []
    monkeypatch.setattr(compare, "replace_file", lambda file, save: (save(file), drawn.append(compare.plt.gcf())))
    compare.picture(tmp_path / "x.png", runs, speed)
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles == [f"{name}: validation" for name in sets] + ["training speed"] * bool(contexts)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_what_was_not_measured_is_a_dash():
    assert "| `softmax` | 9 | 2.000 (one document) | 0.00 MiB | 0.00 MiB | - |" in compare.table(
        [run("wiki", "softmax", [])], []
    )


def test_another_file_of_speeds_is_refused(tmp_path):
    file = tmp_path / "speed.json"
    file.write_text('{"rows": [{"attention": 1}]}')
    with pytest.raises(
        ValueError, match=r"speed=.*speed\.json: expected the JSON that scripts/bench_models\.py writes"
    ):
        compare.read_speed(str(file))
    assert compare.read_speed(None) == []
