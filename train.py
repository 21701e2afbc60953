"""Train a decoder language model: ``python train.py attention=lightning``; ``--help`` tells every option.

``python train.py -m sweep=hybrid_ratio`` trains and evaluates all arms of configs/sweep/hybrid_ratio.yaml.
"""

import sys

from zoo.commands import run

if __name__ == "__main__":
    run("train", sys.argv[1:])
