"""The numbers, and what the file of results says about the machine that they were measured on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zoo_kernels.launch import interpreting

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
CHECK, REPEATS = "error / allowance", "arrays that differ"  # metrics of correctness, which hold in a dry run too


class Shape(NamedTuple):
    """Batch, tokens, query heads, head width, and key heads if they are fewer."""

    batch: int
    length: int
    heads: int
    width: int
    groups: int = 0

    def __str__(self) -> str:
        keys = "" if self.key_heads == self.heads else f" G{self.groups}"
        return f"B{self.batch} T{self.length} H{self.heads}{keys} D{self.width}"

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.groups or self.heads

    @property
    def numbers(self) -> int:
        """Numbers of an array of queries."""
        return self.batch * self.length * self.heads * self.width


class Timing(NamedTuple):
    """Milliseconds of one call: median, smallest and largest of all samples."""

    median: float
    low: float
    high: float


class Row(NamedTuple):
    """What a number is about; ``direction`` is forward, backward or forward+backward."""

    name: str
    shape: Shape
    dtype: torch.dtype
    implementation: str
    direction: str
    timing: Timing | None = None


class Record(NamedTuple):
    """One number. ``target`` is a bound such as ">= 2"; ``reached`` says whether the value keeps it."""

    piece: str
    name: str
    shape: dict[str, int]
    dtype: str
    implementation: str
    direction: str
    milliseconds: float | None
    low: float | None
    high: float | None
    metric: str
    value: float
    target: str | None
    unit: str
    reached: bool | None


def reaches(value: float, target: str) -> bool:
    """Whether a value keeps a bound."""
    relation, bound = target.split()
    return value >= float(bound) if relation == ">=" else value <= float(bound)


def environment(device: torch.device) -> dict[str, Any]:
    """Machine and versions, by which results of one machine are told from another's."""
    found: dict[str, Any] = {"device": device.type, "cpu": _cpu(), "cores": os.cpu_count()}
    found |= {"torch": torch.__version__, "python": platform.python_version(), "system": platform.platform()}
    found |= {"interpreted": interpreting(), "triton": _triton()}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"gpu": gpu.name, "gpu_bytes": gpu.total_memory, "multiprocessors": gpu.multi_processor_count}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def _triton() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file of results in one piece."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(unfinished, file)
