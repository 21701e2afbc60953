"""Choice of a backend: ``auto`` takes the fastest one that exists for the device and says so once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar, cast

import torch

log = logging.getLogger("kernels")

BACKENDS = ("torch", "reference")

Function = TypeVar("Function", bound=Callable[..., Any])


class BackendError(ValueError):
    """The backend that was asked for does not exist or cannot run here."""


def resolve_backend(requested: str, family: str, device: torch.device) -> str:
    """Name of the backend that will run ``family`` on ``device``.

    Raises:
        BackendError: if ``requested`` is none of ``auto``, ``torch`` and ``reference``.
    """
    if requested == "auto":
        if not torch.compiler.is_compiling():  # a log call has no place in a graph
            _announce(family, device.type)
        return "torch"
    if requested not in BACKENDS:
        raise BackendError(
            f"backend={requested!r} does not exist for {family}: expected one of auto, {', '.join(BACKENDS)}."
        )
    return requested


@cache
def _announce(family: str, device_type: str) -> None:
    log.info("%s on %s: backend=torch (the only fast form there is)", family, device_type)


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
