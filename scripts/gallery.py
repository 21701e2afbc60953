"""Draw every attention: ``python scripts/gallery.py --help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo.commands import run

if __name__ == "__main__":
    run("gallery", sys.argv[1:])
