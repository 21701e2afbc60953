"""The machine and the versions that a file of results is about."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from zoo_kernels.launch import interpreting


def environment(device: torch.device) -> dict[str, Any]:
    """Machine and versions."""
    found: dict[str, Any] = {"device": device.type, "cpu": _cpu(), "threads": torch.get_num_threads()}
    found |= {"torch": torch.__version__, "python": platform.python_version(), "system": platform.platform()}
    found |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "interpreted": interpreting()}
    triton = sys.modules.get("triton")
    if hasattr(os, "getloadavg"):
        found |= {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
    found["triton"] = getattr(triton, "__version__", None)
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"gpu": gpu.name, "gpu_bytes": gpu.total_memory, "multiprocessors": gpu.multi_processor_count}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
