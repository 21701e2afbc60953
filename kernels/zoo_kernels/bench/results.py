"""The file of results: what every step has found, on which machine and of which kernels."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import zoo_kernels
from zoo_kernels.bench.bench import Found, Options
from zoo_kernels.bench.record import Record
from zoo_kernels.launch import interpreting


class Results:
    """What every step has found until now, in a file that is written anew after every row.

    What another machine or other kernels have written does not count.

    Args:
        options: of the run; without ``out`` there is no file.
    """

    def __init__(self, options: Options) -> None:
        self.file, self.found = options.out, dict[str, Found]()
        about = environment(options.device) | {"scale": options.scale, "threads": options.threads}
        key = hashlib.sha256(json.dumps([about, code_hash()], sort_keys=True).encode()).hexdigest()[:16]
        self.content = {"key": key, "environment": about}
        try:
            known = json.loads(self.file.read_text(encoding="utf-8")) if self.file else {}
        except (OSError, ValueError):
            return
        if isinstance(known, dict) and known.get("key") == key:
            for name, step in known["steps"].items():
                self.found[name] = Found(**step | {"records": list(map(Record.from_json, step["records"]))})

    def done(self, name: str) -> bool:
        """Whether nothing of a step is missing."""
        return name in self.found and self.found[name].complete

    def keep(self, name: str, found: Found) -> None:
        """Store what a step has until now."""
        self.found[name] = found
        self.write()

    def fail(self, name: str, why: str) -> None:
        """Store why a step has not ended well; the next call tries it again."""
        found = self.found.setdefault(name, Found())
        found.complete = False
        found.errors.append({"name": name, "error": why, "traceback": ""})
        print(f"ERROR {name}: {why}", flush=True)
        self.write()

    def write(self, interrupted: bool = False) -> None:
        """Write the file, whole or not at all."""
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        steps = {n: asdict(f) | {"records": [r.to_json() for r in f.records]} for n, f in self.found.items()}
        if self.file is not None:
            content = self.content | {"date": date, "interrupted": interrupted, "steps": steps}
            unfinished = self.file.with_name(f".{self.file.name}.{os.getpid()}.tmp")
            self.file.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(unfinished, self.file)


def code_hash() -> str:
    """A hash of the kernels and of what measures them."""
    digest = hashlib.sha256()
    for file in sorted(Path(zoo_kernels.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def environment(device: torch.device) -> dict[str, Any]:
    """Machine and versions, by which results of one machine are told from another's."""
    found: dict[str, Any] = {"device": device.type, "cpu": _cpu(), "cores": os.cpu_count()}
    found |= {"torch": torch.__version__, "python": platform.python_version(), "system": platform.platform()}
    found |= {"interpreted": interpreting(), "triton": version("triton") if find_spec("triton") else None}
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        found |= {"gpu": gpu.name, "gpu_bytes": gpu.total_memory, "multiprocessors": gpu.multi_processor_count}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
