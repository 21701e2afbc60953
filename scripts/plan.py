"""What a model costs and what a machine makes of it: ``python scripts/plan.py --help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo.commands import run

if __name__ == "__main__":
    run("plan", sys.argv[1:])
