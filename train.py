"""Train a decoder language model: ``python train.py attention=lightning``; ``--help`` tells every option.

``python train.py -m sweep=hybrid_ratio`` trains and evaluates all arms of configs/sweep/hybrid_ratio.yaml.
"""

from __future__ import annotations

import sys

from omegaconf import DictConfig, OmegaConf

from zoo.ablation.plan import asks_for_sweep
from zoo.cli import friendly_errors
from zoo.config import register_mixers, run_dir
from zoo.entry import Job, start
from zoo.paths import command, take_paths


def main(config: DictConfig, job: Job) -> None:
    """One run; ``resume=RUN_DIR`` continues it, ``init=RUN_DIR`` starts from its weights."""
    with friendly_errors():
        from zoo.training.callbacks import Interrupted
        from zoo.training.configuration import resumed_config
        from zoo.training.initial import initial_config
        from zoo.training.run import train

        if config.resume:
            config = resumed_config(config, job.overrides)
        elif config.init:
            config = initial_config(config, job.overrides)
        try:
            train(config, job.folder)
        except Interrupted as stop:
            again = command("python", "train.py", f"resume={job.folder}")
            print(f"{stop}; continue with: {again}", file=sys.stderr, flush=True)
            raise SystemExit(128 + stop.number) from None
        print(f"finished: {job.folder}\nevaluate: {command('python', 'eval.py', f'run={job.folder}')}", flush=True)


def check(arguments: list[str]) -> None:
    """Refuse what cannot be trained before Hydra makes a folder; print the help that is asked for."""
    with friendly_errors():
        from zoo.schema.command import check_command

        check_command(arguments)


def sweep(arguments: list[str]) -> int:
    """All runs of a sweep, each a process of its own; the same command continues it."""
    with friendly_errors():
        from zoo.ablation.sweep import run_sweep

        return run_sweep(arguments)


if __name__ == "__main__":
    if asks_for_sweep(sys.argv[1:]):
        raise SystemExit(sweep(sys.argv[1:]))
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    register_mixers()
    check(take_paths(sys.argv[1:]))
    start("train", main, sys.argv[1:])
