"""Every registered mixer, a few of their options, and what the tests of the contract share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import zoo
from zoo.mixers.caches import Cache, StateCache

WIDTH, HEADS, DEPTH = 32, 4, 3

VARIANTS = Path(__file__).parent / "variants"


def variants(name: str, kind: str) -> list[dict[str, Any]]:
    """Sets of options that a mixer is tested with beside its defaults, from ``variants/NAME.yaml`` if there is one.

    Those of the kind ``shapes`` make it compute in another way and are always tested; those of the kind ``options``
    change numbers and are tested by CI alone.
    """
    file = VARIANTS / f"{name}.yaml"
    kinds = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else {}
    assert set(kinds) <= {"shapes", "options"}, f"{file} has {sorted(kinds)}"
    return kinds.get(kind, [])


SHAPES = [(name, options) for name in zoo.mixers.names() for options in [{}, *variants(name, "shapes")]]
OPTIONS = [(name, options) for name in zoo.mixers.names() for options in variants(name, "options")]
CASES = SHAPES + OPTIONS


def label(case: tuple[str, dict[str, Any]]) -> str:
    """Name of a case."""
    return "-".join([case[0], *(f"{key}={value}" for key, value in case[1].items())])


def parametrized(always: list[Any], in_ci: Sequence[Any] = ()) -> pytest.MarkDecorator:
    """A test of the cases ``always``, and, in CI, of those of ``in_ci`` too."""
    slow = [pytest.param(*case, marks=pytest.mark.slow, id=label(case)) for case in in_ci]
    return pytest.mark.parametrize(("name", "options"), [pytest.param(*c, id=label(c)) for c in always] + slow)


DEFAULTS = [case for case in SHAPES if not case[1]]
every_mixer = parametrized(SHAPES, OPTIONS)
with_slow_shapes = parametrized(DEFAULTS, [case for case in CASES if case[1]])
with_slow_shapes_alone = parametrized(DEFAULTS, [case for case in SHAPES if case[1]])
options_alone = parametrized([], OPTIONS)
every_name = pytest.mark.parametrize("name", zoo.mixers.names())


def make(name: str, options: dict[str, Any] | None = None, *, heads: int = HEADS, **more: Any) -> zoo.mixers.Mixer:
    """A mixer in fp64 and evaluation mode, with weights large enough for its choices to matter."""
    torch.manual_seed(0)
    given = {"width": WIDTH, "depth": DEPTH} | (options or {}) | more
    mixer = zoo.mixers.build(name, heads=heads, **given).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.dim() == 2 and min(parameter.shape) > 1:
                parameter.mul_(2)
    return mixer


def draw(batch: int, length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Inputs ``(B, T, C)``."""
    return torch.randn(batch, length, WIDTH, dtype=dtype)


def new_cache(mixer: zoo.mixers.Mixer, batch: int, capacity: int | None = None) -> Any:
    """A cache in fp64."""
    return mixer.new_cache(batch, capacity, dtype=torch.float64)


def assert_equal(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    """Equal up to the order of sums in fp64."""
    assert torch.isfinite(got).all()
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def tensors(thing: Any) -> list[Tensor]:
    """Every tensor that an object holds."""
    if isinstance(thing, Tensor):
        return [thing]
    if isinstance(thing, dict):
        return [t for value in thing.values() for t in tensors(value)]
    if isinstance(thing, list | tuple):
        return [t for value in thing for t in tensors(value)]
    return tensors(vars(thing)) if hasattr(thing, "__dict__") else []


def states(cache: Cache) -> list[StateCache]:
    """Every state that a cache is made of."""
    return [leaf for leaf in cache.leaves() if isinstance(leaf, StateCache)]
