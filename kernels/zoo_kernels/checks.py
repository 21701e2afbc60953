"""Checks of arguments that every family makes before any work, on every backend alike."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_arrays(alike: bool = True, **arrays: Any) -> None:
    """Checks that arrays are tensors of real numbers of one dtype on one device.

    Args:
        alike: require one dtype.
        arrays: tensors by their names in messages; None is skipped.

    Raises:
        ValueError: with the name of the array.
    """
    given = {name: x for name, x in arrays.items() if x is not None}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} is a {type(x).__name__}, expected a torch.Tensor.")
        if x.dtype not in FLOATING:
            raise ValueError(f"{name} is {x.dtype}, expected float16, bfloat16, float32 or float64.")
    if alike and len({x.dtype for x in given.values()}) > 1:
        types = ", ".join(str(x.dtype) for x in given.values())
        raise ValueError(f"{', '.join(given)} are of different types ({types}): convert them to one.")
    check_devices(**given)


def check_devices(**arrays: Tensor | None) -> None:
    """Checks that all arrays are on one device; None is skipped.

    Raises:
        ValueError: with the names of the arrays.
    """
    given = {name: x for name, x in arrays.items() if x is not None}
    if len({x.device for x in given.values()}) > 1:
        places = ", ".join(str(x.device) for x in given.values())
        raise ValueError(f"{', '.join(given)} are on different devices ({places}): move them to one.")


def check_shape(name: str, x: Tensor | None, *shapes: tuple[int, ...]) -> None:
    """Refuses an array of none of these shapes; None is passed over."""
    if x is not None and tuple(x.shape) not in shapes:
        expected = " or ".join(str(tuple(shape)) for shape in dict.fromkeys(shapes))
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {expected}.")


def check_integers(name: str, x: Any, shape: tuple[int, ...]) -> None:
    """Checks that ``x`` is a tensor of integers of the given shape.

    Raises:
        ValueError: with the name of the array.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} is a {type(x).__name__}, expected a torch.Tensor of integers.")
    if x.shape != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {tuple(shape)}.")
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ValueError(f"{name} is {x.dtype}, expected integers.")


def check_number(name: str, value: Any, above: float = -math.inf) -> None:
    """Checks that ``value`` is a finite number above ``above``.

    Raises:
        ValueError: with the name of the argument.
    """
    number = isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool)
    if not number or not above < value < math.inf:  # no isfinite: a graph of any numbers cannot hold it
        bound = "" if above == -math.inf else f" above {above:g}"
        raise ValueError(f"{name}={value}: expected a finite number{bound}.")


def check_count(name: str, value: Any) -> None:
    """Checks that ``value`` is an integer >= 0.

    Raises:
        ValueError: with the name of the argument.
    """
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name}={value}: expected an integer >= 0.")


def refuse_transforms(family: str, *arrays: Tensor | None) -> None:
    """Refuses tensors of torch.func's transforms, which the custom ops do not support.

    Raises:
        NotImplementedError: at the first of them.
    """
    if torch.compiler.is_compiling():  # PyTorch's own errors, and refuse_forward_mode
        return
    if any(x is not None and torch._C._functorch.is_functorch_wrapped_tensor(x) for x in arrays):
        raise _unsupported(family)


def refuse_forward_mode(family: str) -> None:
    """Refuses forward-mode differentiation, in which the custom ops would silently drop tangents.

    Raises:
        NotImplementedError: inside torch.func.jvp or a dual level, also while tracing.
    """
    if forward_ad._current_level >= 0:
        raise _unsupported(family)


def _unsupported(family: str) -> NotImplementedError:
    return NotImplementedError(
        f"{family} has first derivatives by torch.autograd only, none in forward mode and no batching rule: "
        "dual tensors and torch.func (jvp, jacfwd, grad, vmap, ...) are refused."
    )


def host_knows(x: Tensor) -> bool:
    """Returns whether the host can read values of ``x`` without waiting for a device or breaking a graph."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and type(x) in (Tensor, torch.nn.Parameter)


def check_decay(log_decay: Tensor | None) -> None:
    """Refuses log decays above 0, where asking waits for no device and cuts no graph."""
    if log_decay is not None and host_knows(log_decay) and (log_decay > 0).any():
        raise ValueError(f"log_decay goes up to {log_decay.max():g}, expected numbers <= 0: a state only decays.")


def unfit_state(state: Tensor) -> str | None:
    """Says why a Triton step cannot write to ``state`` in place; None if it can."""
    if state.dtype == torch.float32 and state.is_contiguous():
        return None
    return f"the state is {state.dtype} with strides {state.stride()}, and the kernel takes contiguous float32"
