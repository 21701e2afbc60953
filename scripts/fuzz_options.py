"""Try random arguments, right and wrong, on every program: each must succeed or be refused in one line.

    python scripts/fuzz_options.py [count=500] [seed=1] [programs=train,eval] [OPTION=VALUE ...]

Every case runs in a fork of this interpreter, which has loaded everything, in a folder of its own with a little text
and a trained run. At fault is what ends in a traceback, in another status than 0 or 2, in more or less than one line of
error, after ``seconds``, or with files left behind by a refusal; it is printed as a command that can be pasted. Ctrl-C
ends with what there is. The status is 1 if a case is at fault.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Annotated

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo.cli import answer_ctrl_c, friendly_errors

if __name__ == "__main__":
    answer_ctrl_c()

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}  # before torch is imported

from annotated_types import Gt

from zoo.schema.arguments import Arguments, OutputFolder, read_arguments
from zoo.schema.base import Count, Number, Positive, option

PROGRAMS = {"train": 10, "eval": 5, "scripts": 5}  # and how often each is drawn


class Options(Arguments):
    """Options of the trial."""

    count: Positive = option("cases", default=2000)
    seed: Count | None = option("of all that is drawn; empty: a new one, which is printed", default=None)
    programs: list[str] = option("train, eval, scripts, or names of scripts", default=list(PROGRAMS), min_length=1)
    jobs: Positive = option("cases at a time", default=2)
    seconds: Annotated[Number, Gt(0)] = option("that a case may take", default=60.0)
    work: OutputFolder | None = option("folder for cases, which is kept; empty: a new one", default=None)


def main() -> int:
    """Draw, run, judge; the exit status."""
    chosen, _ = read_arguments(Options, sys.argv[1:], __doc__)
    import torch

    from tests.fuzz.campaign import draw_cases, load_programs, run_campaign
    from tests.fuzz.spaces import choose_spaces
    from tests.fuzz.start import make_start

    spaces = choose_spaces(chosen.programs)
    seed = random.randrange(10**6) if chosen.seed is None else chosen.seed
    work = Path(chosen.work or tempfile.mkdtemp(prefix="fuzz-options-")).absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["ZOO_CACHE"] = str(work / "cache")
    print(f"seed={seed}, cases begin as copies of {work / 'start'}", flush=True)
    load_programs()
    (work / "home").mkdir(exist_ok=True)
    os.environ["HOME"] = str(work / "home")  # of ~ in what is drawn
    torch.set_num_threads(1)
    make_start(work / "start", work)
    cases = draw_cases(spaces, [PROGRAMS.get(name, 1) for name in chosen.programs], chosen.count, seed)
    tally = run_campaign(cases, work / "start", work, chosen.jobs, chosen.seconds)
    return 1 if tally.failed else 0


if __name__ == "__main__":
    with friendly_errors():
        sys.exit(main())
