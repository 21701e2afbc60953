"""One style: formats, the same bytes each time, labels that do not overlap, ticks, and names that are no markup."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.image import imread

from tests.tiers import in_ci
from zoo import plotting
from zoo.plotting import (
    LINES,
    PALETTE,
    label_ends,
    leave_out_the_fall,
    legend_below,
    line_style,
    palette,
    panels,
    picture_formats,
    save_figure,
    shown_format,
    spread,
    styled,
    svg_text,
    token_axis,
    tokens,
)


@styled
def draw(name="a curve"):
    figure, ((axes,),) = panels(size=(4, 3))
    lines = axes.plot([1, 2, 3], [3.0, 1.0, 2.0], label=name)
    axes.set(title=name)
    legend_below(figure, [(lines[0], name)])
    return figure, axes


def test_without_a_choice_a_picture_is_a_png(tmp_path):
    assert save_figure(tmp_path / "made" / "a.b.png", draw()[0], dpi=100) == [tmp_path / "made" / "a.b.png"]
    assert imread(tmp_path / "made" / "a.b.png").shape[:2] == (300, 400)
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["a.b.png"]


def test_every_format_is_written_and_the_choice_ends(tmp_path):
    with picture_formats(["svg", "pdf", "svg", "png"]):
        assert shown_format() == "svg"
        files = save_figure(tmp_path / "a.png", draw()[0])
    assert shown_format() == "png"
    assert [file.name for file in files] == ["a.svg", "a.pdf", "a.png"]
    assert [file.read_bytes()[:4] for file in files] == [b"<?xm", b"%PDF", b"\x89PNG"]
    assert "a curve" in files[0].read_text(), "text of an SVG is text"
    assert b"/CIDFontType2" in files[1].read_bytes() and b"/Type3" not in files[1].read_bytes()


@pytest.mark.parametrize("kind", ["png", *in_ci("svg", "pdf")])
def test_the_same_picture_is_the_same_bytes(tmp_path, kind):
    with picture_formats([kind]):
        (first,), (second,) = (save_figure(tmp_path / name, draw()[0]) for name in ("a.png", "b.png"))
        (other,) = save_figure(tmp_path / "c.png", draw("another")[0])
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()


def test_a_picture_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(plotting, "_reduce", lambda file, colors: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_figure(tmp_path / "a.png", draw()[0])
    assert list(tmp_path.iterdir()) == []


def test_names_are_neither_mathematics_nor_markup():
    text = svg_text(draw("_<b>&$\\frac$")[0])
    assert text.count("_&lt;b&gt;&amp;$\\frac$") == 2  # in the title and in the legend, though it begins with _
    assert "\u2009_" in text


def test_drawing_changes_no_setting_outside():
    before = dict(rcParams)
    draw()
    assert dict(rcParams) == before and rcParams["text.parse_math"] is True


def test_colors_are_apart_and_dark_enough_for_text():
    def light(color):
        parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    assert all(1.05 / (light(color) + 0.05) >= 3 for color in PALETTE), "contrast with white"
    assert len(set(PALETTE)) == len(PALETTE)
    styles = [tuple(line_style(number).values()) for number in range(len(PALETTE) * len(LINES))]
    assert len(set(styles)) == len(styles)
    assert palette(["a", "b"]) == {"a": PALETTE[0], "b": PALETTE[1]}


@pytest.mark.parametrize("centers", [[0.5, 0.5, 0.5], [1.0, 0.99, 0.98], [0.02, 0.01, 0.0], [0.9, 0.5, 0.49]])
def test_labels_are_near_and_apart(centers):
    heights = [0.1, 0.2, 0.1]
    places = spread(centers, heights)
    edges = [(p + h / 2, p - h / 2) for p, h in zip(places, heights)]
    assert edges[0][0] <= 1 + 1e-9 and edges[-1][1] >= -1e-9
    assert all(above[1] >= below[0] - 1e-9 for above, below in pairwise(edges))
    assert np.abs(np.subtract(places, centers)).max() < 0.35


def test_labels_with_room_stay():
    assert spread([0.9, 0.5, 0.1], [0.1, 0.1, 0.1]) == pytest.approx([0.9, 0.5, 0.1])


def test_labels_without_room_hang_from_the_top():
    places = spread([0.9, 0.5, 0.1], [0.5, 0.5, 0.5])
    assert places == pytest.approx([0.75, 0.25, -0.25])


def test_ends_of_curves_that_meet_have_labels_apart():
    _, axes = draw()
    axes.set(xlim=(1, 3), ylim=(0, 4))
    label_ends(axes, 3, [("high\nname", 2.0, "red"), ("low", 2.0, "blue")], line=0.1)
    high, low = axes.texts
    assert high.get_position()[1] - low.get_position()[1] == pytest.approx(0.1 * (2.25 + 1.25) / 2)
    assert (high.get_text(), high.get_color()) == ("high\nname", "red")


def test_tokens_are_short_where_that_is_exact():
    assert [tokens(v) for v in (96, 512, 1500, 2048, 2**20, 1.5 * 2**20)] == ["96", "512", "1,500", "2k", "1M", "1536k"]


@pytest.mark.parametrize(
    ("counts", "ticks"),
    [([64], ["64"]), ([4, 8, 2048], ["2k", "8", "4"]), ([2**n for n in range(2, 18)], ["128k", "32k", "8k"])],
)
def test_a_token_axis_has_few_ticks_and_the_last_count(counts, ticks):
    _, axes = draw()
    token_axis(axes, counts)
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert shown[: len(ticks)] == ticks and len(shown) <= 8 and axes.get_xscale() == "log"


def test_the_first_fall_is_left_out_of_many_values_only():
    _, axes = draw()
    before = axes.get_ylim()
    leave_out_the_fall(axes, [8.0, 1.0], 0.9)
    assert axes.get_ylim() == before
    leave_out_the_fall(axes, [8.0, *np.linspace(1, 2, 99)], 0.9)
    low, high = axes.get_ylim()
    assert 0.8 < low < 1 and 1.8 < high < 2.1
