"""Capabilities of the device at hand: precision, peak rate and memory."""

from __future__ import annotations

from pathlib import Path

import torch

# Dense matrix rate of bf16 in FLOP/s, from the makers' data sheets.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}

CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of a container, versions 2 and 1


def choose_precision(requested: str, accelerator: str) -> str:
    """Returns Lightning's precision; ``auto`` is bf16-mixed on GPUs that have it, 16-mixed on older ones.

    CPUs get 32-true, since most multiply bf16 matrices far slower than fp32.
    """
    if requested != "auto":
        return requested
    if accelerator != "cuda":
        return "32-true"
    return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"


def choose_accelerator(requested: str) -> str:
    """Returns Lightning's accelerator for ``auto``: cuda, mps or cpu."""
    if requested != "auto":
        return "cuda" if requested == "gpu" and torch.cuda.is_available() else requested
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 matrix rate of a device in FLOP/s, None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def device_memory(accelerator: str) -> int | None:
    """Bytes available to one process: of the GPU, or the free main memory; None if it is not known."""
    if accelerator == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    if accelerator != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
        free = sizes["MemAvailable"] + sizes.get("SwapFree", 0)
    except (OSError, KeyError, ValueError):
        return None
    limits = [_number(Path("/sys/fs/cgroup") / name) for name in CGROUP_LIMITS]
    return min([free, *(limit for limit in limits if limit is not None)])


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max": there is no limit
        return None
