"""Choice of a backend: ``auto`` takes the fastest one that exists for the device and says so once."""

from __future__ import annotations

import logging
from functools import cache

import torch

log = logging.getLogger("kernels")

BACKENDS = ("torch", "reference")


class BackendError(ValueError):
    """The backend that was asked for does not exist or cannot run here."""


def resolve_backend(requested: str, family: str, device: torch.device) -> str:
    """Name of the backend that will run ``family`` on ``device``.

    Raises:
        BackendError: if ``requested`` is none of ``auto``, ``torch`` and ``reference``.
    """
    if requested == "auto":
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
