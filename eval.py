"""Evaluate trained runs: ``python eval.py run=RUN_DIR``; options are in configs/eval.yaml and configs/task/."""

from __future__ import annotations

import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from zoo.cli import choose_device, friendly_errors
from zoo.config import PATHS, quote_paths


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
def main(config: DictConfig) -> None:
    """One task, or a suite of tasks, on one checkpoint of each run."""
    with friendly_errors():
        from zoo.evaluation.program import evaluate_runs
        from zoo.evaluation.tasks import build_task

        task = build_task(OmegaConf.to_container(config.task, resolve=True))  # type: ignore[arg-type]
        evaluate_runs(config.run, task, config.checkpoint, choose_device(config.device), config.seed, config.out)


if __name__ == "__main__":
    sys.argv[1:] = quote_paths(sys.argv[1:], (*PATHS, "task.path", "task.haystack", "task.include_path", "out"))
    main()
