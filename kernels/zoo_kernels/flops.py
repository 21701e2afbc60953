"""FLOP formulas of the custom ops, for torch.utils.flop_counter.FlopCounterMode.

That module imports Triton where it is installed, so the formulas are registered only once somebody else has imported
it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Formula = Callable[..., int]

_formulas: list[tuple[Any, Formula]] = []


def flop_formula(op: Any) -> Callable[[Formula], Formula]:
    """Decorator that declares the FLOP formula of ``op``.

    The formula takes the arguments of ``op``, with shapes in place of tensors, and ``out_shape``.
    """

    def remember(formula: Formula) -> Formula:
        _formulas.append((op, formula))
        return formula

    return remember


def offer_flops() -> None:
    """Registers all formulas if FlopCounterMode has been imported, also with counters that exist already."""
    counter = None if torch.compiler.is_compiling() else sys.modules.get("torch.utils.flop_counter")
    if counter is None:
        return
    for op, formula in _formulas:
        if op not in counter.flop_registry:
            counter.register_flop_formula(op)(formula)
    for mode in _get_current_dispatch_mode_stack():
        registry = getattr(getattr(mode, "counter", mode), "flop_registry", None)
        if registry is not None:
            for op, _ in _formulas:
                registry.setdefault(op, counter.flop_registry[op])
