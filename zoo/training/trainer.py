"""Lightning's trainer as a run uses it, and the callbacks that every run has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning
from lightning.pytorch.loggers import Logger

from zoo.costs.machine import choose_accelerator, choose_precision
from zoo.data.datamodule import LanguageData
from zoo.options.groups.trainer import TrainerOptions
from zoo.ranks import this_launch
from zoo.training.callbacks import StopOnNonFinite, StopOnSignal, ValidateAtEnd
from zoo.training.checkpointing import AtomicCheckpointIO, Checkpoints
from zoo.training.monitoring.monitor import Monitor, ProgressDisplay
from zoo.training.signals import StopSignals
from zoo.training.strategies import build_strategy, launched_devices


def run_callbacks(
    options: TrainerOptions, folder: Path, data: LanguageData, monitor: Monitor, signals: StopSignals, budget: int
) -> list[lightning.Callback]:
    """Builds the callbacks of every run, in the order in which Lightning calls them.

    Args:
        options: intervals of checkpoints and of validation.
        folder: folder of checkpoints.
        data: prepared data, whose documents are named where a loss is not finite.
        monitor: callback that records the metrics.
        signals: signals that stop the run.
        budget: optimizer steps.
    """
    checkpoints = Checkpoints(folder, options.checkpoint_every, options.keep_every, options.validate_every)
    return [
        StopOnNonFinite(data.stores["train"], data.length, checkpoints),
        monitor,
        ProgressDisplay(monitor),
        ValidateAtEnd(),
        checkpoints,
        StopOnSignal(checkpoints, signals, budget),
    ]


def build_trainer(
    options: TrainerOptions,
    folder: Path,
    budget: int,
    done: int,
    loggers: Sequence[Logger],
    callbacks: Sequence[lightning.Callback],
    accumulate: Callable[[int], int],
) -> lightning.Trainer:
    """Builds Lightning's trainer for one run.

    Args:
        options: devices, precision, clipping and intervals.
        folder: folder of the run.
        budget: optimizer steps.
        done: optimizer steps that a resumed run has done; 0 for a new one.
        loggers: loggers of the metrics.
        callbacks: in the order in which they are called.
        accumulate: micro batches per optimizer step, as a function of the number of processes.
    """
    accelerator = choose_accelerator(options.accelerator)
    devices, nodes = launched_devices(this_launch(), options.strategy, options.devices, options.num_nodes)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=budget + (done >= budget),  # Lightning starts nothing at the end of its budget
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=build_strategy(options.strategy),
        precision=choose_precision(options.precision, accelerator),  # type: ignore[arg-type]
        gradient_clip_val=options.gradient_clip,
        logger=list(loggers),
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO()],
        val_check_interval=options.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    # Lightning's own handlers talk to other processes from within, and requeue jobs of SLURM
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.accumulate_grad_batches = accumulate(trainer.world_size)
    trainer.val_check_interval = options.validate_every * trainer.accumulate_grad_batches
    return trainer
