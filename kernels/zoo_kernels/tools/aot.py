"""Ahead-of-time compilation of recorded launches for any GPU architecture, without such a GPU.

A launch becomes a job, which is everything that Triton's own JIT would compile it from: two launches with equal jobs
share one binary. Jobs are compiled in worker processes, so that a crash of the compiler costs one job and not the run.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, NamedTuple

from zoo_kernels.launch import Launch
from zoo_kernels.tools.offsets import Offsets, count_offsets

SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}  # of one thread block
CRASHED = "the compiler crashed"
_DOT16 = re.compile(r"tt\.dot .*: tensor<(\d+)x\d+xb?f16[,>]")


class KernelName(NamedTuple):
    """A kernel by where it is defined: what can cross to another process."""

    module: str
    name: str

    def find(self) -> Any:
        """Imports the kernel."""
        return getattr(import_module(self.module), self.name)


class Compilation(NamedTuple):
    """One compilation: what Triton keys its binaries by."""

    kernel: KernelName
    architecture: str
    signature: tuple[tuple[str, str], ...]  # parameter -> type, ``constexpr`` for what is compiled in
    constants: tuple[tuple[int, Any], ...]  # index of parameter -> value
    attributes: tuple[tuple[int, Any], ...]  # index of parameter -> what is known of its values: divisibility
    warps: int
    stages: int

    @property
    def key(self) -> str:
        """Key that is equal for launches that share a binary."""
        return repr(self)

    @property
    def flags(self) -> dict[str, Any]:
        """Compile-time constants by parameter; arrays that are None are left out."""
        return {self.signature[i][0]: x for i, x in self.constants if x is not None}


class Compiled(NamedTuple):
    """What one compiled kernel takes and uses; ``error`` is why there is none."""

    registers: int = 0
    stack: int = 0
    shared: int = 0
    warps: int = 0
    wgmma: int = 0
    tma: int = 0
    mma: int = 0
    dots16: int = 0  # matrix products of 16-bit operands in the source that are tall enough for a wgmma
    offsets: Offsets = Offsets()
    seconds: float = 0.0
    error: str | None = None

    def faults(self, job: Compilation) -> list[str]:
        """Lists why this kernel must not be released, as register spills."""
        if self.error is not None:
            return [self.error]
        limit = SHARED_BYTES[job.architecture]
        found = []
        if self.stack:
            found.append(f"spills {self.stack} bytes of registers per thread to the stack")
        if self.shared > limit:
            found.append(f"takes {self.shared} bytes of shared memory, and {job.architecture} has {limit}")
        return found + self.offsets.faults()

    def warnings(self, job: Compilation) -> list[str]:
        """Lists what makes this kernel slow."""
        if job.architecture == "sm_90" and self.dots16 and not self.wgmma:
            return [f"none of its {self.dots16} 16-bit matrix products became a wgmma"]
        return []


@cache
def _backend(architecture: str) -> Any:
    from triton.compiler.compiler import make_backend

    return make_backend(_target(architecture))


def _target(architecture: str) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


_binders: dict[tuple[int, str], tuple[Any, ...]] = {}  # by identity: the hash of a kernel is that of its sources


def _binder(kernel: Any, architecture: str) -> tuple[Any, Any]:
    """The kernel as Triton compiles it, even if TRITON_INTERPRET=1 made it something else, and what reads arguments."""
    from triton.runtime.jit import JITFunction, create_function_from_signature

    if (id(kernel), architecture) not in _binders:
        function = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **kernel.kwargs)
        binder = create_function_from_signature(function.signature, function.params, _backend(architecture))
        _binders[id(kernel), architecture] = function, binder, kernel  # the kernel stays, and with it its identity
    function, binder, _ = _binders[id(kernel), architecture]
    return function, binder


def job(launch: Launch, architecture: str) -> Compilation:
    """Returns what Triton's JIT would compile for ``launch`` on a GPU of ``architecture``."""
    config = launch.config
    kernel, binder = _binder(launch.kernel, architecture)
    bound, specialized, unknown = binder(*launch.arguments, **launch.constants, **config.tiles)
    if unknown:
        raise TypeError(f"{kernel.__name__} has no parameter {', '.join(sorted(unknown))}.")
    signature, constants, attributes = [], [], []
    for index, (name, (kind, known)) in enumerate(zip(bound, specialized)):
        signature.append((name, kind))
        if kind == "constexpr":
            value = bound[name]
            constants.append((index, KernelName(value.__module__, value.__name__) if hasattr(value, "fn") else value))
        elif isinstance(known, str):
            attributes.append((index, tuple(map(tuple, _backend(architecture).parse_attr(known)))))
    where = KernelName(kernel.__module__, kernel.__name__)
    parts = tuple(signature), tuple(constants), tuple(attributes)
    return Compilation(where, architecture, *parts, config.warps, config.stages)


def compile_keys(launches: Iterable[Launch], architecture: str) -> dict[str, frozenset[str]]:
    """Returns, for each kernel name, the keys of the binaries that ``launches`` need."""
    keys: dict[str, set[str]] = {}
    for launch in launches:
        made = job(launch, architecture)
        keys.setdefault(made.kernel.name, set()).add(made.key)
    return {name: frozenset(found) for name, found in keys.items()}


def compile_job(job: Compilation) -> Compiled:
    """Compiles a job in this process, which must not have TRITON_INTERPRET set."""
    from triton.compiler import ASTSource, compile

    begin = time.perf_counter()
    try:
        source = ASTSource(
            job.kernel.find(),
            signature=dict(job.signature),
            constexprs={(i,): x.find() if isinstance(x, KernelName) else x for i, x in job.constants},
            attrs={(i,): [list(pair) for pair in x] for i, x in job.attributes},
        )
        options = {"num_warps": job.warps, "num_stages": job.stages}
        compiled = compile(source, target=_target(job.architecture), options=options)
        return _measure(compiled)._replace(seconds=time.perf_counter() - begin)
    except Exception as error:  # a failure of any kind is a result of this job, to be shown beside the others
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[-1] if lines else ""
        return Compiled(error=f"does not compile: {type(error).__name__}: {text}", seconds=time.perf_counter() - begin)


def _measure(compiled: Any) -> Compiled:
    ptx, usage = compiled.asm["ptx"], _resources(compiled.asm["cubin"])
    return Compiled(
        registers=int(usage["REG"]),
        stack=int(usage["STACK"]),
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        wgmma=ptx.count("wgmma.mma_async"),
        tma=ptx.count("cp.async.bulk"),
        mma=len(re.findall(r"^\s*mma\.sync", ptx, re.MULTILINE)),
        dots16=sum(int(rows) >= 64 for rows in _DOT16.findall(compiled.asm["ttir"])),
        offsets=count_offsets(compiled.asm["ttir"]),
    )


def _resources(cubin: bytes) -> dict[str, str]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        shown = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"\b(REG|STACK):(\d+)", shown))


def _serve(pipe: Any) -> None:
    import signal

    with open(os.devnull, "wb") as nothing:  # Triton prints the whole program when an assembler fails
        os.dup2(nothing.fileno(), 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends its workers
    while True:
        pipe.send(compile_job(pipe.recv()))


class _Worker:
    """A process and the job that it has."""

    def __init__(self) -> None:
        context = get_context("spawn")  # a fork would inherit the threads of torch, and modules that are interpreted
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.job: Compilation | None = None

    def give(self, job: Compilation) -> None:
        self.job = job
        self.pipe.send(job)

    def take(self) -> Compilation:
        assert self.job is not None
        done, self.job = self.job, None
        return done

    def end(self) -> None:
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def compile_all(jobs: Iterable[Compilation], workers: int = 2) -> Iterator[tuple[Compilation, Compiled]]:
    """Compiles jobs in worker processes and yields each with its cost as it finishes.

    Workers end with the generator, also when it is closed early.
    """
    waiting = list(jobs)[::-1]
    interpreted = os.environ.pop("TRITON_INTERPRET", None)
    team: list[_Worker] = []
    try:
        team += [_Worker() for _ in range(min(workers, len(waiting)))]
        for worker in team:
            worker.give(waiting.pop())
        while busy := {id(worker.pipe): worker for worker in team if worker.job is not None}:
            for pipe in connection.wait([worker.pipe for worker in busy.values()]):
                worker = busy[id(pipe)]
                done = worker.take()
                try:
                    cost = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    cost = Compiled(error=CRASHED)
                    worker.end()
                    team[team.index(worker)] = worker = _Worker()
                if waiting:
                    worker.give(waiting.pop())
                yield done, cost
    finally:
        for worker in team:
            worker.end()
        if interpreted is not None:
            os.environ["TRITON_INTERPRET"] = interpreted
