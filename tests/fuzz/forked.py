"""A program run in a fork of this interpreter, which has imported everything already, in a folder of its own."""

from __future__ import annotations

import os
import resource
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 6 * 2**30  # bytes of address space that a case may take on top of what the parent has


@dataclass(frozen=True)
class Case:
    """A program, relative to the repository's root, and its arguments."""

    program: str
    arguments: tuple[str, ...]

    def command(self, start: Path) -> str:
        """A line for a shell that runs the case in a copy of the folder ``start``."""
        words = [sys.executable, str(ROOT / self.program), *self.arguments]
        copy = f'd=$(mktemp -d) && cp -r {shlex.quote(str(start))}/. "$d" && cd "$d"'
        return f"{copy} && OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 {shlex.join(words)}"


@dataclass(frozen=True)
class Ended:
    """How a case ended.

    Attributes:
        status: of the process, negative for a signal; None if it was killed because its time was over.
        left: files and folders that are there afterwards and were not before, or have another size.
    """

    case: Case
    status: int | None
    stdout: str
    stderr: str
    seconds: float
    left: tuple[str, ...] = ()


@dataclass
class Running:
    """A case that has been started; its folder is removed when it has ended."""

    case: Case
    pid: int
    folder: Path
    before: dict[str, int]
    begin: float = field(default_factory=time.monotonic)

    def poll(self, seconds: float) -> Ended | None:
        """How the case ended; None while it runs. After ``seconds`` it is killed, its own children included."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        taken = time.monotonic() - self.begin
        if not pid and taken < seconds:
            return None
        self._kill()
        if not pid:
            os.waitpid(self.pid, 0)
        out, err = (self.folder.with_suffix(suffix).read_text("utf-8", "replace") for suffix in (".out", ".err"))
        after = sizes(self.folder)
        left = tuple(name for name, size in sorted(after.items()) if self.before.get(name) != size)
        self._remove()
        return Ended(self.case, os.waitstatus_to_exitcode(status) if pid else None, out, err, taken, left)

    def stop(self) -> None:
        """Kill the case and forget it."""
        self._kill()
        os.waitpid(self.pid, 0)
        self._remove()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        for suffix in (".out", ".err"):
            self.folder.with_suffix(suffix).unlink()


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below ``folder`` by its path, -1 for a folder."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            found[os.path.relpath(path, folder)] = -1 if name in folders else os.lstat(path).st_size
    return found


def start_case(case: Case, start: Path, parent: Path) -> Running:
    """Start a case in a new folder below ``parent`` with the content of ``start``."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix="case"))
    shutil.copytree(start, folder, dirs_exist_ok=True, symlinks=True)
    before = sizes(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _become(case, folder)
    return Running(case, pid, folder, before)


def run_case(case: Case, start: Path, parent: Path, seconds: float = 60) -> Ended:
    """Run one case to its end, or kill it after ``seconds``."""
    running = start_case(case, start, parent)
    while (ended := running.poll(seconds)) is None:
        time.sleep(0.02)
    return ended


def run_cases(
    cases: Sequence[Case], start: Path, parent: Path, jobs: int = 2, seconds: float = 60
) -> Iterator[tuple[int, Ended]]:
    """Run cases, ``jobs`` at a time; their numbers and how they ended, as they end."""
    waiting, running = list(enumerate(cases))[::-1], {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, case = waiting.pop()
                running[number] = start_case(case, start, parent)
            for number, one in list(running.items()):
                if (ended := one.poll(seconds)) is not None:
                    del running[number]
                    yield number, ended
            time.sleep(0.01)
    finally:
        for one in running.values():
            one.stop()


def _become(case: Case, folder: Path) -> None:
    """In the fork: be the program, and end as Python would."""
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        for number, suffix in ((1, ".out"), (2, ".err")):
            os.dup2(os.open(folder.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "r" if n == 0 else "w", closefd=False) for n in range(3))
        _limit_memory()
        status = _execute(case)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                status = status or 1
        os._exit(status)


def _execute(case: Case) -> int:
    program = ROOT / case.program
    sys.argv = [str(program), *case.arguments]
    sys.path[0:0] = [str(program.parent)]
    try:
        runpy.run_path(str(program), run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _limit_memory() -> None:
    """A size that does not fit is then an error of this process, and not of the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
