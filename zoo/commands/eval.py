"""Evaluate trained runs: ``python eval.py run=RUN_DIR``; options are in configs/eval.yaml and configs/task/."""

from __future__ import annotations

from zoo.cli import choose_device
from zoo.evaluation.program import evaluate_runs
from zoo.evaluation.tasks.base import build_task, task_help
from zoo.options.programs import EvaluationOptions, read_program
from zoo.plotting import picture_formats


def main(arguments: list[str]) -> None:
    """Evaluates one checkpoint of each run on a task, or a suite of tasks."""
    options = read_program("eval", EvaluationOptions, arguments, __doc__, task_help)
    task = build_task(options.task)
    device = choose_device(options.device)
    with picture_formats(options.formats):
        evaluate_runs(
            options.run,
            task,
            options.checkpoint,
            device,
            options.seed,
            options.out,
            data_path=options.data.path,
            cache_dir=options.data.cache_dir,
        )
