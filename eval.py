"""Evaluate trained runs: ``python eval.py run=RUN_DIR``; options are in configs/eval.yaml and configs/task/."""

import sys

from zoo.commands import run

if __name__ == "__main__":
    run("eval", sys.argv[1:])
