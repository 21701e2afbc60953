"""Devices as small YAML files: configs/hardware/NAME.yaml."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.config import CONFIGS

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}


@dataclass(frozen=True)
class Hardware:
    """Figures of one device.

    Attributes:
        name: name of the device.
        peak: dense matrix rate in FLOP/s by dtype.
        bandwidth: bandwidth of the main memory, bytes/s.
        memory: size of the main memory, bytes.
        cores: number of streaming multiprocessors, or of other units with their own on-chip memory.
        on_chip: bytes of on-chip memory that a block of threads can use.
        registers: bytes of a core's register file; None where accumulators live in ``on_chip``.
        note: remark about the figures.
    """

    name: str
    peak: dict[str, float]
    bandwidth: float
    memory: float
    cores: int
    on_chip: int
    registers: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        unknown = set(self.peak) - set(DTYPES)
        if unknown or not self.peak:
            raise ValueError(f"hardware.peak has {sorted(unknown)}: expected rates of {', '.join(DTYPES)}.")
        sizes = {key: getattr(self, key) for key in ("bandwidth", "memory", "cores", "on_chip")} | self.peak
        for key, value in sizes.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{self.name}: {key}={value!r}: expected a number > 0.")

    def choose_dtype(self, requested: str = "auto") -> str:
        """Returns the dtype to use: ``auto`` is bf16 where the device multiplies it, else the first dtype it has.

        Raises:
            ValueError: on a dtype without a rate.
        """
        if requested == "auto":
            return "bf16" if "bf16" in self.peak else next(iter(self.peak))
        if requested not in self.peak:
            raise ValueError(f"dtype={requested}: {self.name} has rates of {', '.join(self.peak)}.")
        return requested

    def ridge(self, dtype: str) -> float:
        """FLOPs per byte above which the matrix units, not the memory, limit the speed."""
        return self.peak[dtype] / self.bandwidth


def hardware_names(folder: Path = CONFIGS / "hardware") -> list[str]:
    """Returns the names that :func:`load_hardware` takes."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def load_hardware(name: str, changes: list[str] | None = None) -> Hardware:
    """Loads the device of configs/hardware/NAME.yaml, or of a YAML file given by its path.

    Args:
        name: name or path.
        changes: dotted ``KEY=VALUE``, as ``on_chip=65536`` or ``peak.bf16=1e12``.

    Raises:
        ValueError: if there is none of that name (the message lists what exists), or the file cannot be used.
    """
    file = Path(name) if name.endswith(".yaml") else CONFIGS / "hardware" / f"{name}.yaml"
    if not file.is_file():
        raise ValueError(f"hardware={name}: expected one of {', '.join(hardware_names())}, or a path to a YAML file.")
    try:
        config = OmegaConf.create(OmegaConf.to_container(OmegaConf.load(file)))
        OmegaConf.set_struct(config, True)
        content: Any = OmegaConf.to_container(OmegaConf.merge(config, OmegaConf.from_dotlist(changes or [])))
        known = [field.name for field in fields(Hardware)]
        if unknown := set(content) - set(known):
            raise ValueError(f"unknown {', '.join(sorted(unknown))}: expected {', '.join(known)}")
        return Hardware(**content)
    except (OmegaConfBaseException, yaml.YAMLError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"hardware={name} {' '.join(changes or [])}: {error}") from error
