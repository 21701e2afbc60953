"""FLOP formulas of the custom ops, for torch.utils.flop_counter.FlopCounterMode.

That module imports Triton where it is installed, so the formulas are handed over only to who has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

Formula = Callable[..., int]

_waiting: list[tuple[Any, Formula]] = []


def flop_formula(op: Any) -> Callable[[Formula], Formula]:
    """Decorator: the formula takes the arguments of ``op``, with shapes in place of tensors, and ``out_shape``."""

    def remember(formula: Formula) -> Formula:
        _waiting.append((op, formula))
        return formula

    return remember


def offer_flops() -> None:
    """Registers what is waiting, if FlopCounterMode has been imported."""
    if not _waiting or torch.compiler.is_compiling():
        return
    counter = sys.modules.get("torch.utils.flop_counter")
    while counter is not None and _waiting:
        op, formula = _waiting.pop()
        counter.register_flop_formula(op)(formula)
