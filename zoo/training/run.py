"""One training run: from a configuration to a run folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import lightning
from omegaconf import DictConfig

from zoo.config import ConfigError, to_dict
from zoo.costs.matching import match_config
from zoo.data import save_tokenizer, tokens_with
from zoo.data.datamodule import LanguageData
from zoo.model import Decoder
from zoo.model.from_config import Architecture, decoder_config
from zoo.model.trained import Trained
from zoo.options.budget import step_budget
from zoo.options.check import check_config
from zoo.options.train import read_config
from zoo.paths import expand
from zoo.runs.run_folder import RunFolder, write_json
from zoo.training.callbacks import ValidateFirst
from zoo.training.checkpointing import read_resumed, remove_leftovers, resume_checkpoint
from zoo.training.head_sharing import sharing_callbacks
from zoo.training.initial import load_initial
from zoo.training.module import LanguageModule
from zoo.training.monitoring.loggers import build_loggers
from zoo.training.monitoring.monitor import Monitor
from zoo.training.optimizers.build import scheduled_optimizer
from zoo.training.signals import StopSignals
from zoo.training.strategies import process_rank
from zoo.training.summary import summary
from zoo.training.trainer import build_trainer, run_callbacks
from zoo.training.training_data import build_data, given_tokenizer, prepare_data, trained_on


def train(config: DictConfig, folder: str | Path) -> dict[str, float]:
    """Trains in ``folder``, or resumes there if the configuration says ``resume``.

    A run that is refused before its first step leaves nothing behind.

    Returns:
        The last metrics.

    Raises:
        Interrupted: after a signal; the finished steps are saved.
    """
    config = check_config(config)
    options = read_config(config)
    run = RunFolder(expand(options.resume) if options.resume else folder)
    checkpoint = resume_checkpoint(run.path) if options.resume else None
    budget = step_budget(options.trainer, options.data.length)
    with _claimed(run, new=options.resume is None) as signals:
        resumed = _resumed(run, checkpoint, budget)
        done = resumed.step if resumed else 0
        lightning.seed_everything(options.seed, verbose=False)
        if process_rank() == 0:
            run.describe(config)  # before anything that takes long, so that a run that is killed there can be resumed
        tokenizer = given_tokenizer(run, resumed, options.init)
        data = build_data(options.data, options.tokenizer, options.trainer, options.seed, tokenizer)
        prepare_data(data, run.path, resumed)
        config, matched = (config, None) if resumed else match_config(config, data.vocab_size)
        separators = tokens_with(data.tokenizer, options.model.separators)
        decoder = Decoder(decoder_config(Architecture.of(config), data.vocab_size, separators))
        earlier = resumed or (load_initial(decoder, options.init) if options.init else None)
        decoder.checkpoint_activations = options.trainer.checkpoint_activations
        optimizer = partial(scheduled_optimizer, options=to_dict(config.optimizer), total=budget)
        trained = trained_on(data, options.plugins, earlier)
        module = LanguageModule(
            decoder, optimizer, data.token_bytes, trained, data.recall_names, options.trainer.compile
        )
        monitor = Monitor(options.trainer.log_every, 3 * decoder.cost(data.length).flops_per_token)
        callbacks = [
            *sharing_callbacks(options.share_heads),
            *run_callbacks(options.trainer, run.checkpoints, data, monitor, signals, budget),
            *([ValidateFirst(budget)] if resumed and resumed.validation_due else []),
        ]
        loggers = build_loggers(run.path, done if options.resume else None, options.logger, to_dict(config))
        trainer = build_trainer(options.trainer, run.path, budget, done, loggers, callbacks, data.accumulate)
        if process_rank() == 0:
            _record(run, config, data)
            print(summary(run.path, options.model.name, options.data.name, decoder, data, budget, matched), flush=True)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return monitor.latest


@contextmanager
def _claimed(run: RunFolder, new: bool) -> Iterator[StopSignals]:
    """Have the folder to this process, or to the first of several, and listen to signals."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")  # Lightning's own use of torch
    with StopSignals(process_rank() == 0) as signals:
        if process_rank() != 0:  # the first process has the folder
            yield signals
            return
        with run.claimed(new, trained=lambda: signals.deferred):
            remove_leftovers(run.checkpoints)
            yield signals


def _resumed(run: RunFolder, checkpoint: Path | None, budget: int) -> Trained | None:
    """What the checkpoint that a run goes on from says; None for a new run.

    Raises:
        ConfigError: if it has nothing left to do, or has weights only.
    """
    if checkpoint is None:
        return None
    resumed = read_resumed(checkpoint)
    if resumed.step >= budget and not resumed.validation_due:
        raise ConfigError(
            f"{run.path} has {resumed.step} steps, its budget is {budget}: give a larger trainer.max_steps."
        )
    return resumed


def _record(run: RunFolder, config: DictConfig, data: LanguageData) -> None:
    """Keep in the folder what the run trains on and with which sizes."""
    write_json(run.path / "data.json", data.describe())
    run.write_config(config)  # with the sizes that were solved for
    save_tokenizer(data.tokenizer, run.tokenizer)
