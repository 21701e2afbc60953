"""Choice of a backend: ``auto`` takes the fastest form that can run and says once which one, and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from zoo_kernels.launch import obstacle

log = logging.getLogger("zoo_kernels")

BACKENDS = ("triton", "torch", "reference")
WIDEST = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 64}  # heads that the Triton kernels have tiles for

_preferred = "auto"

Function = TypeVar("Function", bound=Callable[..., Any])


class BackendError(ValueError):
    """The backend that was asked for does not exist or cannot run here."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside, ``backend="auto"`` means ``name``: ``auto``, ``triton``, ``torch`` or ``reference``.

    It holds for the whole process, and is read when an op is called or compiled.

    Raises:
        BackendError: if there is no such backend.
    """
    global _preferred
    if name not in ("auto", *BACKENDS):
        raise BackendError(f"backend={name!r} does not exist: expected auto, {', '.join(BACKENDS)}.")
    before, _preferred = _preferred, name
    try:
        yield
    finally:
        _preferred = before


def resolve_backend(requested: str, family: str, *arrays: Tensor, missing: str | None = None) -> str:
    """Name of the backend that will run ``family`` on these arrays: ``triton``, ``torch`` or ``reference``.

    Args:
        missing: what this call asks for and the Triton form of the family does not have.

    Raises:
        BackendError: if ``requested`` does not exist, or is ``triton`` and cannot run: it says what is missing.
    """
    requested = _preferred if requested == "auto" else requested
    if requested not in ("auto", *BACKENDS):
        raise BackendError(f"backend={requested!r} does not exist for {family}: expected auto, {', '.join(BACKENDS)}.")
    if requested in ("torch", "reference"):
        return requested
    device = arrays[0].device
    if requested == "auto" and device.type != "cuda":
        _announce(family, device.type, "torch", "the Triton form needs a CUDA device")
        return "torch"
    reason = obstacle(device) or missing or _unfit(arrays)
    if requested == "triton":
        if reason is not None:
            raise BackendError(f"backend='triton' cannot run {family} here: {reason}. Use backend=auto or torch.")
        return "triton"
    chosen = "torch" if reason else "triton"
    _announce(family, device.type, chosen, reason or "a CUDA device with Triton")
    return chosen


def _unfit(arrays: tuple[Tensor, ...]) -> str | None:
    for x in arrays:
        if x.dtype not in WIDEST:
            return f"its arrays are {x.dtype}, and the kernels take float32, float16 and bfloat16"
        if x.shape[-1] > WIDEST[x.dtype]:
            return f"its heads are {x.shape[-1]} wide, and the kernels take up to {WIDEST[x.dtype]} in {x.dtype}"
    if len({x.dtype for x in arrays}) > 1:
        return f"q, k and v are of different types ({', '.join(str(x.dtype) for x in arrays)})"
    return None


def _announce(family: str, device: str, chosen: str, reason: str) -> None:
    if not torch.compiler.is_compiling():  # a log call has no place in a graph
        _announce_once(family, device, chosen, reason)


@cache
def _announce_once(family: str, device: str, chosen: str, reason: str) -> None:
    log.info("%s on %s: backend=%s (%s)", family, device, chosen, reason)


def without_autocast(function: Function) -> Function:
    """Decorator: products inside keep the precision of their operands, whatever autocast the caller is under."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        if not torch.amp.is_autocast_available(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return cast(Function, run)
