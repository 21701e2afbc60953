"""Launches of Triton kernels: whether they can run here, their tiles for this GPU, the launch itself.

Launches can be recorded instead of run. scripts/compile_kernels.py compiles what it records for GPUs that are not
there, and tests compare what two calls would compile. Triton itself is imported only when a kernel is.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

ARCHITECTURES = ("sm_80", "sm_90")
INTERPRETER = "interpreter"
CONFIGS_VARIABLE = "ATTENTION_ZOO_CONFIGS"  # names a file of scripts/tune_kernels.py


class Config(NamedTuple):
    """Tiles (compile-time constants of the kernel by name), warps and pipeline stages of one launch."""

    tiles: dict[str, int]
    warps: int = 4
    stages: int = 2


Table = dict[str, dict[str, dict[tuple[int, int], Config]]]  # kernel -> architecture -> (bytes of a number, width)


class Launch(NamedTuple):
    """One recorded launch: the kernel (a triton.JITFunction), its grid and its arguments."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    config: Config


class _Recording(NamedTuple):
    architecture: str
    launches: list[Launch]


_recording: _Recording | None = None


@contextlib.contextmanager
def record(architecture: str) -> Iterator[list[Launch]]:
    """Context manager in which launches are recorded and not run; ``backend="triton"`` takes tensors of any device.

    Args:
        architecture: one of ARCHITECTURES, whose tiles are used.
    """
    global _recording
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture={architecture!r}: expected one of {', '.join(ARCHITECTURES)}.")
    before, _recording = _recording, _Recording(architecture, [])
    try:
        yield _recording.launches
    finally:
        _recording = before


def interpreting() -> bool:
    """Returns whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def obstacle(device: torch.device) -> str | None:
    """Returns why no Triton kernel can run on ``device``; None if it can."""
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if _recording is not None:
        return None
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        return None if capability >= (8, 0) else f"the GPU has compute capability {capability}, and 8.0 is needed"
    if device.type == "cpu" and interpreting():
        return None
    return f"the tensors are on {device.type}; it needs a CUDA device, or TRITON_INTERPRET=1 on CPU for tests"


def architecture(device: torch.device) -> str:
    """Returns the architecture whose row in the tables of tiles serves ``device``."""
    if _recording is not None:
        return _recording.architecture
    return INTERPRETER if device.type == "cpu" else _of_gpu(device.index or 0)


@cache
def _of_gpu(index: int) -> str:
    return "sm_90" if torch.cuda.get_device_capability(index) == (9, 0) else "sm_80"


@cache
def _tuned(file: str) -> dict[tuple[str, str, int, int], Config]:
    try:
        rows = json.loads(Path(file).read_text(encoding="utf-8"))["configs"]
        return {
            (row["kernel"], row["architecture"], row["bytes"], row["width"]): Config(
                {name: int(size) for name, size in row["tiles"].items()}, int(row["warps"]), int(row["stages"])
            )
            for row in rows
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{type(error).__name__}: {error}"
        raise ValueError(f"{CONFIGS_VARIABLE}={file} is not a file of scripts/tune_kernels.py ({text}).") from error


def choose(table: Table, kernel: str, device: torch.device, dtype: torch.dtype, width: int) -> Config:
    """Returns the tiles of ``kernel`` for heads up to ``width`` wide: the row of the next width in the table.

    A row of the file that ATTENTION_ZOO_CONFIGS names takes precedence over the table.
    """
    name = architecture(device)
    rows = table[kernel][name]
    size = 4 if dtype == torch.float32 else 2
    key = min(key for key in rows if key[0] == size and key[1] >= width)
    file = os.environ.get(CONFIGS_VARIABLE)
    config = _tuned(file).get((kernel, name, *key), rows[key]) if file else rows[key]
    if config.tiles.keys() != rows[key].tiles.keys():
        raise ValueError(f"{CONFIGS_VARIABLE}={file}: {kernel} has the tiles {', '.join(rows[key].tiles)}.")
    return config


def whole_vectors(x: torch.Tensor) -> torch.Tensor:
    """Pads the columns of ``x`` with zeros to a multiple of 16 bytes, so that a kernel loads whole vectors."""
    missing = -x.shape[-1] % (16 // x.element_size())
    return torch.nn.functional.pad(x, (0, missing)) if missing else x


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, config: Config, **constants: Any) -> None:
    """Runs ``kernel[grid]``; ``constants`` are compile-time constants other than the tiles."""
    if _recording is not None:
        _recording.launches.append(Launch(kernel, grid, arguments, constants, config))
        return
    first = next(x for x in arguments if isinstance(x, torch.Tensor))
    guard = torch.cuda.device(first.device) if first.device.type == "cuda" else contextlib.nullcontext()
    with guard:
        kernel[grid](*arguments, **constants, **config.tiles, num_warps=config.warps, num_stages=config.stages)
