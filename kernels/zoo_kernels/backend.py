"""Choice of a backend: ``auto`` takes the fastest form that can run, and logs once which one and why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from zoo_kernels.launch import obstacle

log = logging.getLogger("zoo_kernels")

BACKENDS = ("triton", "torch", "reference")
_preferred = "auto"

Function = TypeVar("Function", bound=Callable[..., Any])


class BackendError(ValueError):
    """Raised when the requested backend does not exist or cannot run here."""


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Context manager in which ``backend="auto"`` means ``name``: ``auto``, ``triton``, ``torch`` or ``reference``.

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


class Choice(NamedTuple):
    """The backend that runs a call, and why; the reason is None if the caller asked for it."""

    backend: str
    reason: str | None


def choose_backend(
    requested: str, title: str, widths: Mapping[torch.dtype, int], *arrays: Tensor, missing: str | None = None
) -> Choice:
    """Chooses ``triton``, ``torch`` or ``reference`` for a call with these arrays.

    Args:
        requested: ``auto``, ``triton``, ``torch`` or ``reference``.
        title: name of the operation, for messages.
        widths: largest head width that the Triton form supports, by dtype; empty if there is no such form.
        arrays: q, k and v, whose device, dtype and widths decide.
        missing: what this call asks for that the Triton form does not support.

    Raises:
        BackendError: if ``requested`` does not exist, or is ``triton`` and cannot run: it says what is missing.
    """
    asked = _preferred if requested == "auto" else requested
    if asked not in ("auto", *BACKENDS):
        raise BackendError(f"backend={asked!r} does not exist for {title}: expected auto, {', '.join(BACKENDS)}.")
    if asked in ("torch", "reference"):
        return Choice(asked, None)
    device = arrays[0].device
    if asked == "auto" and device.type != "cuda":
        return Choice("torch", "the Triton form needs a CUDA device")
    reason = obstacle(device) or missing or _unfit(arrays, widths)
    if asked == "triton":
        if reason is not None:
            raise BackendError(f"backend='triton' cannot run {title} here: {reason}. Use backend=auto or torch.")
        return Choice("triton", None)
    return Choice("torch", reason) if reason else Choice("triton", "a CUDA device with Triton")


def announce(title: str, device: torch.device, choice: Choice) -> None:
    """Logs what ``auto`` chose, once for each kind of call."""
    if choice.reason is not None and not torch.compiler.is_compiling():  # a log call has no place in a graph
        _announce_once(title, device.type, choice)


def _unfit(arrays: tuple[Tensor, ...], widths: Mapping[torch.dtype, int]) -> str | None:
    if not widths:
        return "it has no Triton form"
    for x in arrays:
        if x.dtype not in widths:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in widths)
            return f"its arrays are {x.dtype}, and the kernels take {known}"
        if x.shape[-1] > widths[x.dtype]:
            return f"its heads are {x.shape[-1]} wide, and the kernels take up to {widths[x.dtype]} in {x.dtype}"
    if len({x.dtype for x in arrays}) > 1:
        return f"q, k and v are of different types ({', '.join(str(x.dtype) for x in arrays)})"
    return None


@cache
def _announce_once(title: str, device: str, choice: Choice) -> None:
    log.info("%s on %s: backend=%s (%s)", title, device, *choice)


def without_autocast(function: Function) -> Function:
    """Decorator that switches autocast off, so that products keep the precision of their operands."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor))
        if not torch.amp.is_autocast_available(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return cast(Function, run)
