"""Train a decoder language model: ``python train.py attention=lightning``; ``--help`` tells every option.

``python train.py -m sweep=hybrid_ratio`` trains and evaluates all arms of configs/sweep/hybrid_ratio.yaml.
"""

from __future__ import annotations

import sys

from zoo.cli import friendly_errors

if __name__ == "__main__":
    with friendly_errors():
        from zoo.training.program import main  # not above: a Ctrl-C is answered meanwhile

        raise SystemExit(main(sys.argv[1:]))
