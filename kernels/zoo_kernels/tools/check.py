"""The contract of correctness: an error of at most twice (that of plain low precision + eps * max) in every block.

The truth is the family's reference in fp64, through the same public function; this is enough because tests/kernels
compares the references, at all options, with formulas of its own. Plain low precision is that reference with the
operands and results of every matrix product rounded; of a step it is the PyTorch form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zoo_kernels.tools.calls import Call, Inputs, Outputs, Size, raised

GRADIENT = "gradient of "
_OF_INPUTS = (GRADIENT + name for name in ("q", "k", "v", "log_decay", "beta", "read", "erase"))
OF_TOKENS = ("output", "lse", *_OF_INPUTS)  # arrays (B, T, H, ..)
BLOCK = 64  # tokens of a block, which must be right by itself
PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)


class Worst(NamedTuple):
    """The block of an array whose error is the largest in units of what is allowed."""

    array: str
    error: float
    allowed: float

    @property
    def ratio(self) -> float:
        """Error over allowance, at most 1 if the contract holds, at most 1e9 in any case."""
        over = self.error / max(self.allowed, 1e-30) if self.error else 0.0
        return over if over <= 1e9 else 1e9  # also where it is not a number


class FormCheck:
    """What the results of a call are compared with, which is computed once.

    Args:
        call: what is called.
        size: of its inputs.
        cut: inputs that are enough to compute what is compared, where the reference cannot take all.
        part: what is compared, of the outputs and gradients.
    """

    def __init__(
        self,
        call: Call,
        size: Size,
        cut: Callable[[Inputs], Inputs] = dict,
        part: Callable[[Outputs], Outputs] = dict,
    ) -> None:
        self.call, self.part, self.inputs = call, part, call.inputs(size)
        few = cut(self.inputs)
        self.expected = part(call.run(raised(few), "reference"))
        if any(name.startswith(GRADIENT) for name in self.expected):
            with RoundedProducts(size.dtype):
                self.plain = part(call.run(raised(few, torch.float32), "reference"))
        else:
            self.plain = part(call.run(few, "torch"))
        self.epsilon = torch.finfo(size.dtype).eps

    def worst(self, found: Outputs) -> list[Worst]:
        """The worst block of every array of the results."""
        found, worst = self.part(found), []
        for name, expected in self.expected.items():
            if found[name].shape != expected.shape:
                worst.append(Worst(f"{name} of shape {tuple(found[name].shape)}", torch.inf, 0.0))
                continue
            error, plain = (_largest(name, _difference(x[name], expected)) for x in (found, self.plain))
            finite = torch.where(expected.isfinite(), expected, 0.0)
            allowed = 2 * (plain.nan_to_num(0.0, 0.0, 0.0) + self.epsilon * _largest(name, finite))
            blocks = zip(error.flatten().tolist(), allowed.flatten().tolist())
            worst.append(max((Worst(name, *block) for block in blocks), key=lambda one: one.ratio))
        return worst

    def fault(self) -> str | None:
        """Says how the Triton form in its present configuration breaks the contract, None if it holds."""
        for name, error, allowed in (one for one in self.worst(self.call.run(self.inputs, "triton")) if one.ratio > 1):
            return f"{self.call.name}, {name}: error {error:.2g}, allowed {allowed:.2g}"
        return None


class RoundedProducts(TorchDispatchMode):
    """Within it, matrix products take and give numbers of a lower precision, in backward passes too."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op not in PRODUCTS:
            return op(*args, **(kwargs or {}))
        return op(*(x.to(self.dtype).to(x.dtype) for x in args)).to(self.dtype).to(args[0].dtype)


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    found = found.to(expected.dtype)
    return torch.where(found == expected, 0.0, found - expected)  # -inf agrees with -inf


def _largest(name: str, x: Tensor) -> Tensor:
    """Largest size of a number in each head and block of tokens, or of rows of a state, or in all of what has none."""
    if not x.numel():
        return x.new_zeros(1)
    if "state" in name and x.dim() == 4:
        return torch.stack([part.amax((0, 2, 3)) for part in x.abs().split(BLOCK, 2)])
    if name == "output" and x.dim() == 3:  # of a step
        return x.abs().amax((0, 2))
    if name not in OF_TOKENS or x.dim() < 3:
        return x.abs().amax()[None]
    of_heads = x.abs().flatten(3).amax(3) if x.dim() > 3 else x.abs()
    return torch.stack([part.amax((0, 1)) for part in of_heads.split(BLOCK, 1)])
