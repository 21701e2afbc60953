"""Search for faster configurations of a Triton kernel on this GPU; a wrong one is never accepted.

    python scripts/tune_kernels.py kernel=linear.mix [OPTION=VALUE ...]
    ATTENTION_ZOO_CONFIGS=configs.json python train.py ...

Candidates are checked on short inputs against the reference, then timed on (batch, length, heads, width) through all
calls of kernels/zoo_kernels/FAMILY/calls.py that launch the kernel. A winner is written to ``out`` beside those of
earlier searches. The status is 2 where there is no GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo.cli import answer_ctrl_c, friendly_errors

if __name__ == "__main__":
    answer_ctrl_c()

import torch

from zoo.schema.arguments import Arguments, OutputFile, read_arguments
from zoo.schema.base import Positive, option
from zoo_kernels.tools.calls import Size
from zoo_kernels.tools.tuner import Trial, as_record, find_row, save, tune, winner

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CHECKED_LENGTH = 600 + 1  # odd, and long enough for every kernel to be launched


class Options(Arguments):
    """Options of the search."""

    kernel: str = option("kernel to tune, FAMILY.NAME as in kernels/zoo_kernels/FAMILY/triton/configs.py", default="")
    width: Positive = option("numbers of a head", default=128)
    dtype: Literal["bf16", "fp16", "fp32"] = option("type of the inputs", default="bf16")
    out: OutputFile = option("file that keeps the winners", default="configs.json")
    limit: Positive = option("configurations that are tried", default=64)
    batch: Positive = option("sequences of the timed inputs", default=2)
    heads: Positive = option("heads of the timed inputs", default=16)
    length: Positive = option("tokens of the timed inputs", default=4096)


def show(trial: Trial) -> None:
    """One line of a trial."""
    time = "rejected" if trial.milliseconds is None else f"{trial.milliseconds:8.4f} ms"
    print(f"{time}  {trial.config}  {trial.reason}", flush=True)


def main() -> None:
    """Search, print, write."""
    chosen, _ = read_arguments(Options, sys.argv[1:], __doc__)
    if not torch.cuda.is_available():
        raise ValueError("there is no CUDA GPU here, and times of another machine would not help.")
    device, dtype = torch.device("cuda"), DTYPES[chosen.dtype]
    row = find_row(chosen.kernel, dtype, chosen.width, device)
    small = Size(chosen.width, CHECKED_LENGTH, 2, 2, dtype, "cuda")
    large = Size(chosen.width, chosen.length, chosen.batch, chosen.heads, dtype, "cuda")
    trials = tune(row, small, large, tried=show, limit=chosen.limit)
    best = winner(trials)
    if best is None:
        print("the shipped configuration stays: none is faster")
        return
    save(Path(chosen.out), as_record(row, trials, best, device))
    print(f"{chosen.out}: {best.config}, {trials[0].milliseconds} -> {best.milliseconds} ms")


if __name__ == "__main__":
    with friendly_errors():
        main()
