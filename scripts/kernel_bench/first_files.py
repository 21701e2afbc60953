"""The files of ``piece=first``: one a step, which tell what is done, by which code and on which machine."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import zoo_kernels
from kernel_bench.bench import Bench, Record, write
from kernel_bench.machine import environment
from kernel_bench.options import Options

SAME = ("device", "gpu", "torch", "triton", "cuda", "python", "interpreted")  # of the environment


class Files:
    """Results by step in ``out/first``; what another machine or other kernels have written does not count.

    Args:
        options: of the command line; a dry run without ``out`` writes to a temporary folder.
    """

    def __init__(self, options: Options) -> None:
        out = options.out or Path(tempfile.gettempdir()) / "bench_kernels_dry"
        self.folder = out / "first"
        about = environment(options.device)
        found = {key: about.get(key) for key in SAME} | {"scale": options.scale, "code": _code()}
        self.key = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def read(self, name: str) -> dict[str, Any] | None:
        """What is known of a step; None if nothing is, or if it is of other kernels."""
        try:
            content = json.loads(self._file(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if content.get("key") == self.key else None

    def done(self) -> set[str]:
        """Names of the steps that need not be run again."""
        names = [file.stem for file in self.folder.glob("*.json")]
        return {name for name in names if (self.read(name) or {}).get("complete")}

    def keep(self, bench: Bench, complete: bool) -> None:
        """Write what a step has until now."""
        write(self._file(bench.piece), {"key": self.key, "complete": complete, **bench.content()})

    def fail(self, name: str, text: str) -> None:
        """Note that a step ended its process; it is tried again by the next call."""
        content = self.read(name) or {"key": self.key, "complete": False, "records": [], "errors": [], "notes": []}
        content["errors"] = [*content["errors"], {"piece": name, "name": name, "error": text, "traceback": ""}]
        write(self._file(name), content)

    def note_cut(self, names: list[str], text: str) -> None:
        """Note of the step that was running that it was ended."""
        for name in names:
            content = self.read(name)
            if content and not content["complete"]:
                write(self._file(name), content | {"notes": [*content["notes"], f"{name} {text}"]})

    def merged(self, bench: Bench, names: list[str]) -> Bench:
        """Put the results of all steps into ``bench``, in the order of the names."""
        for name in names:
            content = self.read(name)
            if content is not None:
                bench.records += [Record(**record) for record in content["records"]]
                bench.errors += content["errors"]
                bench.notes += [text for text in content["notes"] if text not in bench.notes]
        return bench


def _code() -> str:
    """A hash of the kernels and of what measures them."""
    digest = hashlib.sha256()
    for folder in (Path(zoo_kernels.__file__).parent, Path(__file__).parent):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
