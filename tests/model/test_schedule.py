"""The pattern and patch syntax of schedules."""

from __future__ import annotations

import pytest

from zoo.model.schedule import ScheduleError, expand_schedule

KNOWN = ("gqa", "lightning", "softmax", "window_64")
L, S, G, W = "lightning", "softmax", "gqa", "window_64"


def expand(pattern, depth=8, patch=None, default=L):
    return expand_schedule(pattern, depth, default, KNOWN, patch)


@pytest.mark.parametrize(
    ("pattern", "depth", "layers"),
    [
        ("softmax", 3, [S, S, S]),
        ("attention", 2, [L, L]),
        ("lightning+softmax", 5, [L, S, L, S, L]),
        ("3xlightning+softmax", 8, [L, L, L, S, L, L, L, S]),
        ("7xlightning+softmax", 8, [L] * 7 + [S]),
        ("7xlightning+softmax", 3, [L] * 3),
        ("2xattention+1xsoftmax", 4, [L, L, S, L]),
        ("softmax+2xlightning+gqa", 6, [S, L, L, G, S, L]),
        ("window_64+softmax", 2, [W, S]),
        ("lightning + softmax", 2, [L, S]),
        (" 2xlightning ", 1, [L]),
        ("1000000000000xlightning", 2, [L, L]),
        ("12xsoftmax", 1, [S]),
    ],
)
def test_a_pattern_repeats_joins_and_cycles(pattern, depth, layers):
    assert expand(pattern, depth) == layers


def test_attention_stands_for_the_default():
    assert expand("attention+softmax", 2, default=G) == [G, S]


@pytest.mark.parametrize(
    ("patch", "layers"),
    [
        (None, [L, L, L, L]),
        ("", [L, L, L, L]),
        ("0:softmax", [S, L, L, L]),
        ("-1:softmax", [L, L, L, S]),
        ("0:softmax+-1:gqa", [S, L, L, G]),
        ("-4:softmax+3:gqa", [S, L, L, G]),
        ("1:softmax+1:gqa", [L, G, L, L]),
        ("2:attention", [L, L, L, L]),
        (" 2:softmax + 3:gqa ", [L, L, S, G]),
    ],
)
def test_a_patch_replaces_by_index(patch, layers):
    assert expand("lightning", 4, patch) == layers


@pytest.mark.parametrize("pattern", ["", "+"[:0]])
def test_an_empty_pattern_is_refused_with_an_example(pattern):
    with pytest.raises(ScheduleError, match=r"is empty: expected names such as 7xlightning\+softmax"):
        expand(pattern)


@pytest.mark.parametrize(
    ("pattern", "token"),
    [
        ("lightning+", ""),
        ("+lightning", ""),
        ("lightning++softmax", ""),
        ("lightning,softmax", "lightning,softmax"),
        ("lightning+0xsoftmax", "0xsoftmax"),
        ("-1xsoftmax", "-1xsoftmax"),
        ("3*softmax", "3*softmax"),
        ("3 softmax", "3 softmax"),
        ("3x", "3x"),
        ("3", "3"),
        ("1.5xsoftmax", "1.5xsoftmax"),
        ("softmax x3", "softmax x3"),
        ("   ", "   "),
    ],
)
def test_a_token_that_cannot_be_read_is_named(pattern, token):
    with pytest.raises(ScheduleError) as error:
        expand(pattern)
    assert f"cannot read {token!r}" in str(error.value)
    assert "NxNAME" in str(error.value)


@pytest.mark.parametrize(("pattern", "patch"), [("lightnig", None), ("softmax+2xlightnig", None), (L, "0:lightnig")])
def test_an_unknown_name_is_refused_with_the_known_ones(pattern, patch):
    with pytest.raises(ScheduleError) as error:
        expand(pattern, patch=patch)
    assert "unknown attention 'lightnig'" in str(error.value)
    assert "gqa, lightning, softmax, window_64" in str(error.value)


def test_an_unknown_name_beyond_the_depth_is_refused_too():
    with pytest.raises(ScheduleError, match="'nonsense'"):
        expand("4xsoftmax+nonsense", depth=2)


def test_an_unknown_default_is_refused():
    with pytest.raises(ScheduleError, match="unknown attention 'nonsense'"):
        expand("attention", default="nonsense")


@pytest.mark.parametrize("patch", ["softmax", "0", "0:", ":softmax", "0=softmax", "0:softmax+", "a:softmax", "1.0:gqa"])
def test_a_patch_that_cannot_be_read_is_named(patch):
    with pytest.raises(ScheduleError, match=r"schedule\.patch=.*cannot read .*INDEX:NAME"):
        expand(L, patch=patch)


@pytest.mark.parametrize("index", [8, -9, 100])
def test_an_index_outside_the_layers_is_refused_with_the_range(index):
    with pytest.raises(ScheduleError, match=rf"index {index} is outside the 8 layers \(-8\.\.7\)"):
        expand(L, patch=f"{index}:softmax")
