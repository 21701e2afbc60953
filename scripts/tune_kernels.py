"""Search for faster configurations of a Triton kernel on this GPU; a wrong one is never accepted.

    python scripts/tune_kernels.py kernel=linear.mix [width=128] [dtype=bf16] [out=configs.json] [limit=64]
                                   [batch=2] [heads=16] [length=4096]
    ATTENTION_ZOO_CONFIGS=configs.json python train.py ...

Candidates are checked on short inputs against the reference, then timed on (batch, length, heads, width) through all
calls of kernels/tools/calls.py that launch the kernel. A winner is written to ``out`` beside those of earlier searches.
The status is 2 where there is no GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kernels.tools.calls import Size
from kernels.tools.tuner import Trial, as_record, find_row, save, tune, winner
from zoo.cli import friendly_errors

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DEFAULTS = {"kernel": "", "width": "128", "dtype": "bf16", "out": "configs.json", "limit": "64"}
DEFAULTS |= {"batch": "2", "heads": "16", "length": "4096"}
CHECKED_LENGTH = 600 + 1  # odd, and long enough for every kernel to be launched


def options(arguments: list[str]) -> dict[str, str]:
    """KEY=VALUE arguments over the defaults; ValueError on an unknown key or value."""
    given = dict(a.partition("=")[::2] for a in arguments)
    if unknown := set(given) - set(DEFAULTS):
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}: expected {', '.join(DEFAULTS)}.")
    chosen = {**DEFAULTS, **given}
    for key in ("width", "limit", "batch", "heads", "length"):
        if not chosen[key].isdigit() or not int(chosen[key]):
            raise ValueError(f"{key}={chosen[key]}: expected a whole number above 0.")
    if chosen["dtype"] not in DTYPES:
        raise ValueError(f"dtype={chosen['dtype']}: expected {', '.join(DTYPES)}.")
    return chosen


def show(trial: Trial) -> None:
    """One line of a trial."""
    time = "rejected" if trial.milliseconds is None else f"{trial.milliseconds:8.4f} ms"
    print(f"{time}  {trial.config}  {trial.reason}", flush=True)


def main() -> None:
    """Search, print, write."""
    chosen = options(sys.argv[1:])
    if not torch.cuda.is_available():
        raise ValueError("there is no CUDA GPU here, and times of another machine would not help.")
    device, dtype, width = torch.device("cuda"), DTYPES[chosen["dtype"]], int(chosen["width"])
    row = find_row(chosen["kernel"], dtype, width, device)
    small = Size(width, CHECKED_LENGTH, 2, 2, dtype, "cuda")
    large = Size(width, int(chosen["length"]), int(chosen["batch"]), int(chosen["heads"]), dtype, "cuda")
    trials = tune(row, small, large, tried=show, limit=int(chosen["limit"]))
    best = winner(trials)
    if best is None:
        print("the shipped configuration stays: none is faster")
        return
    save(Path(chosen["out"]), as_record(row, trials, best, device))
    print(f"{chosen['out']}: {best.config}, {trials[0].milliseconds} -> {best.milliseconds} ms")


if __name__ == "__main__":
    with friendly_errors():
        main()
