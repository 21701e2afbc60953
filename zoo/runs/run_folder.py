"""Folder of a run: its lock, and its files beside checkpoints and metrics."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from zoo.config import ConfigError
from zoo.files import replace_text, writing
from zoo.paths import program_command

PACKAGES = (
    "torch",
    "triton",
    "lightning",
    "hydra-core",
    "datasets",
    "transformers",
    "tokenizers",
    "numpy",
    "attention-zoo",
)
RESULTS = "eval"  # of evaluations, in a run folder
RUNS = "runs"  # where a run is put that is given no folder


DESCRIPTION = ("config.yaml", "environment.json", "git.json", "git.diff", "data.json")


class RunFolder:
    """Folder of a run, which one process (with its own children) may write to at a time."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.tokenizer = self.path / "tokenizer"
        self._lock = FileLock(self.path / ".lock")

    @contextmanager
    def locked(self, option: str = "hydra.run.dir") -> Iterator[None]:
        """Have the folder to this process; the lock also ends with the process, however it ends.

        Args:
            option: that says which folder, for errors.

        Raises:
            ConfigError: if another process has it.
        """
        owner = self.path / ".owner"
        with writing(self.path, f"Set {option} to a folder that can be written to; eval.py has out="):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                who = owner.read_text() if owner.is_file() else "unknown"
                raise ConfigError(
                    f"{self.path} is in use by another process ({who}): wait for it, stop it, or set another {option}."
                ) from None
            owner.write_text(f"process {os.getpid()} on {platform.node()}")
        try:
            yield
        finally:
            owner.unlink(missing_ok=True)
            self._lock.release()

    @contextmanager
    def claimed(self, new: bool, trained: Callable[[], bool]) -> Iterator[None]:
        """Context manager that locks the folder, for a new run or for the one that is in it.

        A new run that is refused before it has ``trained`` removes what it had written.

        Raises:
            ConfigError: if another process has the folder, or a new run finds one in it.
        """
        ours = False
        try:
            with self.locked():
                if new:
                    self.refuse_if_used()
                ours = new
                yield
        except Exception:
            if ours and not trained():
                self._forget()
            raise

    def _forget(self) -> None:
        for name in (*DESCRIPTION, ".lock"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.tokenizer, ignore_errors=True)
        with suppress(OSError):  # what is not ours stays
            self.path.rmdir()
            if self.path.parent == Path(RUNS).absolute():
                self.path.parent.rmdir()

    def has_checkpoint(self) -> bool:
        """Returns whether there is a checkpoint to resume from."""
        return any(self.checkpoints.glob("*.ckpt"))

    def holds_run(self) -> bool:
        """Returns whether a run was started here."""
        return (self.path / "config.yaml").exists() or self.has_checkpoint()

    def refuse_if_used(self) -> None:
        """Refuses a folder with a run, which a new run would overwrite.

        Raises:
            ConfigError: if the folder holds a run.
        """
        if self.holds_run():
            raise ConfigError(
                f"{self.path} already holds a run: set another hydra.run.dir, or continue it with: "
                f"{program_command('train.py', f'resume={self.path}')}"
            )

    def describe(self, config: DictConfig) -> None:
        """Writes the resolved configuration, the environment and the state of the source code."""
        self.write_config(config)
        write_json(self.path / "environment.json", environment())
        state, difference = git_state(Path(__file__).resolve().parents[2])
        write_json(self.path / "git.json", state)
        if difference:
            replace_text(self.path / "git.diff", difference)

    def write_config(self, config: DictConfig) -> None:
        """Writes the resolved configuration, which is all that a run needs to start again."""
        replace_text(self.path / "config.yaml", OmegaConf.to_yaml(config, resolve=True))


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    replace_text(path, json.dumps(content, indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Returns versions, hardware and command of this process."""
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_state(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns commit, branch and whether files differ from it, and the difference itself (at most 1 MB)."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "branch": None, "dirty": None}, ""
    branch, changes, difference = (
        git("rev-parse", "--abbrev-ref", "HEAD"),
        git("status", "--porcelain"),
        git("diff", "HEAD"),
    )
    state = {"commit": commit.strip(), "branch": (branch or "").strip(), "dirty": bool(changes)}
    return state, (difference or "")[:1_000_000]
