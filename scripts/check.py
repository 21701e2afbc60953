"""Whether a module is a causal token mixer: ``python scripts/check.py --help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo.commands import run

if __name__ == "__main__":
    run("check", sys.argv[1:])
