"""Options that attentions share are those of zoo.mixers.parts.options, and their ranges hold."""

from __future__ import annotations

from typing import get_type_hints

import pytest
from annotated_types import Gt, Interval

import zoo
from zoo.mixers.parts import options
from zoo.mixers.parts.heads import HeadMixer
from zoo.mixers.parts.options import Option, allows

SHARED = {
    "kv_heads": options.KvHeads,
    "head_dim": options.HeadDim,
    "value_dim": options.ValueDim,
    "qk_norm": options.QkNorm,
    "gate": options.Gate,
    "rope_theta": options.RopeTheta,
    "rope_fraction": options.RopeFraction,
    "norm": options.OutputNorm,
}


@pytest.mark.parametrize("name", zoo.mixers.names())
def test_a_shared_option_is_annotated_with_what_is_written_once(name):
    hints = get_type_hints(zoo.mixers.get(name).__init__, include_extras=True)
    shared = {option: hints[option] for option in zoo.mixers.option_names(name) if option in SHARED}
    if issubclass(zoo.mixers.get(name), HeadMixer):
        assert {"head_dim", "value_dim"} <= set(shared)
    assert shared == {option: SHARED[option] for option in shared}


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        (Option("x"), -1e9, True),
        (Option("x", ge=1), 1, True),
        (Option("x", ge=1), 0, False),
        (Option("x", gt=0), 0, False),
        (Option("x", gt=0, le=1), 1.0, True),
        (Option("x", gt=0, le=1), 1.1, False),
        (Option("x", ge=1), None, True),
        (Gt(0), 0, False),
        (Gt(0), 1, True),
        (Interval(ge=0, lt=1), 1, False),
        ("a note", 1, True),
    ],
)
def test_a_range_allows_what_lies_in_it(option, value, allowed):
    assert allows(option, value) == allowed


@pytest.mark.parametrize(
    ("name", "given", "advice"),
    [
        ("rwkv7", {}, "choose heads that divide it"),
        ("gla", {}, "or set head_dim"),
        ("gla", {"head_dim": 8}, "or set value_dim"),
        ("mamba2", {"head_dim": 8}, "or set value_dim"),
        ("mamba3", {"head_dim": 8}, "or set value_dim"),
        ("linear", {"head_dim": 8, "feature_map": "taylor"}, "or set value_dim"),
    ],
)
def test_heads_that_do_not_divide_the_width_are_told_an_option_that_helps(name, given, advice):
    with pytest.raises(ValueError, match=rf"^width=24 is not divisible by heads=5: .* {advice}\.$"):
        zoo.mixers.build(name, width=24, heads=5, **given)
