"""Fewer key heads for a trained run: ``python scripts/convert.py --help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo.commands import run

if __name__ == "__main__":
    run("convert", sys.argv[1:])
