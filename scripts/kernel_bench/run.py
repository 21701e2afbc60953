"""The run: its pieces one after the other, each with its table and its file."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kernel_bench import (
    ceilings,
    contexts,
    correctness,
    cpu,
    decode,
    decode_cases,
    large,
    linear,
    overhead,
    softmax,
    sparse,
)
from kernel_bench.bench import Bench, write
from kernel_bench.first import run_first
from kernel_bench.options import FIRST, Options, parse
from kernel_bench.pace import KILLED, at_most, killed_after
from kernel_bench.plot import draw
from kernel_bench.report import table, verdict

Piece = Callable[[Bench], None]
CUT = 0.96  # share of the minutes after which a row is cut off

CPU: dict[str, Piece] = {"linear": cpu.linear, "sparse": cpu.sparse, "decode": cpu.decode}
CUDA: dict[str, Piece] = {
    "ceilings": ceilings.ceilings,
    "correctness_linear": correctness.correctness_linear,
    "correctness_softmax": correctness.correctness_softmax,
    "correctness_decode": decode_cases.correctness_decode,
    "correctness_large": large.correctness_large,
    "linear": linear.linear,
    "contexts_forward": contexts.contexts_forward,
    "contexts_training": contexts.contexts_training,
    "few_heads": linear.few_heads,
    "few_heads_exact": softmax.few_heads_exact,
    "widths": linear.widths,
    "softmax": softmax.softmax,
    "gqa": softmax.gqa,
    "windows": softmax.windows,
    "sparse": sparse.sparse,
    "decode": decode.decode,
    "overhead": overhead.overhead,
}


def main(arguments: list[str], usage: str = "") -> None:
    """Run what the arguments ask for; ``--help`` prints ``usage`` and all options.

    Raises:
        ValueError: if they make no sense.
        SystemExit: with status 1 if a piece on CUDA could not be run at all.
    """
    options = parse(arguments, usage)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.pieces == (FIRST,):
        run_first(options)
    elif options.suite == "cpu" or options.dry:
        run_pieces(options)
    elif len(options.pieces) > 1:
        _one_process_each(options)
    else:
        with killed_after(options.minutes * 60):
            run_pieces(options)


def run_pieces(options: Options) -> list[Bench]:
    """All pieces in this process; Ctrl-C ends the run, and what was measured until then is told and written."""
    known = CPU if options.suite == "cpu" else CUDA
    busy = _others_at_work(options)
    benches: list[Bench] = []
    interrupted = False
    try:
        for name in options.pieces:
            benches.append(Bench(options, name))
            if busy:
                benches[-1].note(busy)
            benches[-1].after_row = lambda: _write(options, benches, False)
            limit = options.minutes * 60 * CUT if benches[-1].bounded else math.inf
            with benches[-1].guard(name), at_most(limit):
                known[name](benches[-1])
            _write(options, benches, False)
    except KeyboardInterrupt:
        interrupted = True
    _write(options, benches, interrupted)
    if options.plot and draw((r for bench in benches for r in bench.records), options.plot):
        print(f"plot: {options.plot}")
    print()
    for bench in benches:
        print(table(bench, str(_file(options, bench.piece) or "")))
    print(f"{verdict(benches)}{f'; results: {options.out}' if options.out else ''}", flush=True)
    if interrupted:
        raise KeyboardInterrupt
    return benches


def _others_at_work(options: Options) -> str:
    """What to tell where other programs share the processor with a measurement on it."""
    if options.device.type != "cpu" or options.dry or not hasattr(os, "getloadavg"):
        return ""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"the machine was busy at the start: load {load:.1f} on {cores} cores" if load > 0.5 else ""


def _file(options: Options, piece: str) -> Path | None:
    if options.out is None or options.suite == "cpu":
        return options.out
    return options.out / f"{piece}.json"


def _write(options: Options, benches: list[Bench], interrupted: bool) -> None:
    """On the CPU one file of all pieces, else one of each."""
    if options.out is None or not benches:
        return
    if options.suite == "cpu":
        write(options.out, _joined(benches, interrupted))
        return
    file = _file(options, benches[-1].piece)
    if file is not None:
        write(file, benches[-1].content(interrupted))


def _joined(benches: list[Bench], interrupted: bool) -> dict[str, Any]:
    parts = [bench.content(interrupted) for bench in benches]
    about = parts[0]["environment"] | {"piece": ",".join(bench.piece for bench in benches)}
    about["seconds"] = round(sum(part["environment"]["seconds"] for part in parts), 1)
    return {"environment": about} | {
        key: [entry for part in parts for entry in part[key]] for key in ("records", "errors", "dropped", "notes")
    }


def _one_process_each(options: Options) -> None:
    """A process for every piece, so that a kernel that breaks the GPU's context or hangs ends only its own."""
    kept = [a for a in options.given if not a.startswith("piece=")]
    broken = []
    for piece in options.pieces:
        command = [sys.executable, sys.argv[0], *kept, f"piece={piece}"]
        try:
            status = subprocess.run(command, timeout=options.minutes * 60, check=False).returncode
        except subprocess.TimeoutExpired:
            status = KILLED
        failed = f"ended with status {status}" if status else ""
        if status == KILLED:
            file = _file(options, piece)
            failed = f"did not end within {options.minutes:g} minutes and was stopped"
            failed += f"; what it measured is in {file}" if file else ""
        if failed:
            broken.append(f"{piece} {failed}")
            print(f"ERROR piece {piece} {failed}", flush=True)
    if broken:
        raise SystemExit(1)
