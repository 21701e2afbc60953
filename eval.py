"""Evaluate a trained run: ``python eval.py run=RUN_DIR``; options are in configs/eval.yaml and configs/task/."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from zoo.cli import choose_device, friendly_errors
from zoo.config import PATHS, quote_paths


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(config: DictConfig) -> None:
    """One task on one checkpoint of a run."""
    with friendly_errors():
        from rich.console import Console

        from zoo.evaluation.evaluate import evaluate_run, show
        from zoo.evaluation.run import open_run
        from zoo.evaluation.tasks import build_task

        task = build_task(OmegaConf.to_container(config.task, resolve=True))  # type: ignore[arg-type]
        run = open_run(config.run, config.checkpoint, choose_device(config.device))
        show(evaluate_run(run, task, config.seed), Console())


if __name__ == "__main__":
    sys.argv[1:] = quote_paths(sys.argv[1:], (*PATHS, "task.path"))
    main()
