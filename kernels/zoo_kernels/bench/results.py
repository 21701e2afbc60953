"""The file of results: what every step has found, on which machine and of which kernels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import zoo_kernels
from zoo_kernels.bench.bench import Found, Options
from zoo_kernels.bench.record import Record, environment, write


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
                self.found[name] = Found(**step | {"records": [Record(**r) for r in step["records"]]})

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
        steps = {n: asdict(f) | {"records": [r._asdict() for r in f.records]} for n, f in self.found.items()}
        if self.file is not None:
            write(self.file, self.content | {"date": date, "interrupted": interrupted, "steps": steps})


def code_hash() -> str:
    """A hash of the kernels and of what measures them."""
    digest = hashlib.sha256()
    for file in sorted(Path(zoo_kernels.__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
