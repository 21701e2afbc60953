"""The fast tests hold every attention to every part of the contract: what CI adds are further options and shapes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import zoo

IN_CI = {  # repeat another test of their module with options that change numbers alone, or look whether it compares
    "test_every_backend_gives_the_same_with_other_numbers",
    "test_triton_takes_some_options_of_every_mixer",
    "test_compiled_by_inductor_equals_eager",
}


def of_every_mixer():
    """Module and function of each test that is run for mixers by their names."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.conformance.{file.stem}")
        for name, function in vars(module).items():
            if name.startswith("test_") and any(names_of(mark)[:1] == ["name"] for mark in parametrized(function)):
                yield file.stem, name, function


def parametrized(function):
    return [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]


def names_of(mark):
    """Arguments that a mark gives, of which a limit of a mixer has four."""
    names = [mark.args[0]] if isinstance(mark.args[0], str) else [*mark.args[0]]
    return names if names in (["name"], ["name", "options"]) else []


def fast(mark):
    """First value of each case that is not marked slow."""
    for case in mark.args[1]:
        values, marks = (case.values, case.marks) if hasattr(case, "marks") else (case, ())
        if not any(slow.name == "slow" for slow in marks):
            yield values if isinstance(values, str) else values[0] if isinstance(values, tuple) else values


CASES = [case for case in of_every_mixer() if case[1] not in IN_CI]


@pytest.mark.parametrize(("module", "name", "function"), CASES, ids=[case[1] for case in CASES])
def test_every_attention_is_held_to_it(module, name, function):
    """By at least one case, with at least one value of every other parameter."""
    assert not any(mark.name == "slow" for mark in function.pytestmark)
    for mark in parametrized(function):
        found = list(fast(mark))
        assert found
        assert not names_of(mark) or set(found) == set(zoo.mixers.names())


PARTS = {
    "answer_scores",
    "backends",
    "cache",
    "cache_contents",
    "causality",
    "contract",
    "cost",
    "piece_gradients",
    "refusals",
    "weights",
}


def test_every_file_of_the_contract_has_one():
    assert {case[0] for case in CASES} == {f"test_{part}" for part in PARTS}
