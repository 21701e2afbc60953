"""One training run: from a configuration to a run folder."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
from omegaconf import DictConfig

from zoo.config import ConfigError, absolute, to_dict
from zoo.costs.machine import choose_accelerator, choose_precision
from zoo.data import load_tokenizer, save_tokenizer, tokenizer_fingerprint, tokens_with
from zoo.data.datamodule import LanguageData
from zoo.data.documents import source_notes
from zoo.data.sources.build import build_source
from zoo.data.sources.moved import ChangedData, check_moved
from zoo.model import CheckpointError
from zoo.model.checkpoint import read_checkpoint
from zoo.model.from_config import decoder_config
from zoo.options.budget import step_budget
from zoo.options.check import check_config
from zoo.paths import expand, literal
from zoo.ranks import this_launch
from zoo.runs.run_folder import RunFolder, write_json
from zoo.training.callbacks import StopOnNonFinite, StopOnSignal, ValidateAtEnd, ValidateFirst
from zoo.training.checkpointing import AtomicCheckpointIO, Checkpoints, remove_leftovers, resume_checkpoint
from zoo.training.head_sharing import sharing_callbacks
from zoo.training.initial import initial_recall, load_initial
from zoo.training.module import LanguageModule
from zoo.training.monitoring.loggers import build_loggers
from zoo.training.monitoring.monitor import Monitor, ProgressDisplay
from zoo.training.signals import StopSignals
from zoo.training.strategies import build_strategy, launched_devices, process_rank

if TYPE_CHECKING:
    from zoo.costs.matching import MatchResult


def train(config: DictConfig, folder: str | Path) -> dict[str, float]:
    """Train in ``folder``, or continue there if the configuration says ``resume``; returns the last metrics.

    A run that is refused before its first step leaves nothing behind.

    Raises:
        Interrupted: after a signal; what was done is saved.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")  # Lightning's own use of torch
    config = check_config(config)
    for name in ("path", "cache_dir"):
        if config.data[name] and config.resume is None:
            config.data[name] = literal(absolute(config.data[name]))  # so that eval.py works from anywhere
    run = RunFolder(expand(config.resume) if config.resume else folder)
    checkpoint = resume_checkpoint(run.path) if config.resume else None
    max_steps = step_budget(config)
    with StopSignals(process_rank() == 0) as signals:
        if process_rank() != 0:  # the first process has the folder
            return _train(config, run, checkpoint, max_steps, signals)
        with run.claimed(config.resume is None, trained=lambda: signals.deferred):
            remove_leftovers(run.checkpoints)
            return _train(config, run, checkpoint, max_steps, signals)


def _train(
    config: DictConfig, run: RunFolder, checkpoint: Path | None, max_steps: int, signals: StopSignals
) -> dict[str, float]:
    resumed = resumed_facts(checkpoint) if checkpoint else None
    if resumed and resumed["step"] >= max_steps and not resumed["validation_due"]:
        raise ConfigError(
            f"{run.path} has {resumed['step']} steps, its budget is {max_steps}: give a larger trainer.max_steps."
        )
    lightning.seed_everything(config.seed, verbose=False)
    if process_rank() == 0:
        run.describe(config)  # before anything that takes long, so that a run that is killed there can be resumed
    data = _prepare_data(config, run, resumed)
    matched = None if resumed else _match(config, data)
    module = _build_module(config, data, max_steps, resumed)
    if config.get("init") and resumed is None:
        load_initial(module.decoder, config.init)
    trainer, monitor = _build_trainer(config, run, data, module, max_steps, resumed, signals)
    if process_rank() == 0:
        write_json(run.path / "data.json", data.describe())
        run.write_config(config)  # with the sizes that were solved for
        save_tokenizer(data.tokenizer, run.tokenizer)
        _print_summary(config, run, module, data, max_steps, matched)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return monitor.latest


def resumed_facts(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its run, with its step and whether the validation of that step is still to be done.

    Raises:
        ConfigError: if it has weights only.
    """
    content = read_checkpoint(checkpoint)
    if "optimizer_states" not in content:
        raise ConfigError(f"{checkpoint} has weights only: start a new run from them with init=RUN_DIR.")
    due = content.get("validation_due", False)
    return {"step": content["global_step"], "validation_due": due, **content["zoo"]}


def _prepare_data(config: DictConfig, run: RunFolder, resumed: dict[str, Any] | None) -> LanguageData:
    options = {k: config.data[k] for k in ("length", "isolate_documents", "num_workers", "cache_dir", "val_tokens")}
    given = run.tokenizer if resumed else expand(config.init) / "tokenizer" if config.get("init") else None
    data = LanguageData(
        build_source(to_dict(config.data.source)),
        to_dict(config.tokenizer),
        batch_size=config.trainer.batch_size,
        micro_batch_size=config.trainer.micro_batch_size,
        seed=config.seed,
        tokenizer=load_tokenizer(given) if given else None,
        recall=to_dict(config.data.recall) if config.data.get("recall") is not None else None,
        verify=config.data.get("verify", False),
        **options,
    )
    if resumed and given:
        try:
            check_moved(data.source, resumed["data"], load_tokenizer(given), data.cache_dir, [data.cache_dir])
        except ChangedData as error:
            raise CheckpointError(
                f"the data of {run.path} has changed since its checkpoint was written: {error}."
            ) from error
    data.prepare()
    if resumed and (
        resumed["tokenizer"] != tokenizer_fingerprint(data.tokenizer) or resumed["data"] != data.fingerprint
    ):
        raise CheckpointError(
            f"the data or the tokenizer of {run.path} has changed since its checkpoint was written: an exact "
            "continuation is not possible. Restore them, or start a new run."
        )
    return data


def _match(config: DictConfig, data: LanguageData) -> MatchResult | None:
    """Change what ``config.match`` solves for; a resumed run has it in its configuration already."""
    from zoo.costs.matching import match_config  # not above: it builds decoders with this module

    return match_config(config, data.vocab_size)


def _build_module(
    config: DictConfig, data: LanguageData, max_steps: int, resumed: dict[str, Any] | None
) -> LanguageModule:
    about = {
        "tokens_per_step": config.trainer.batch_size * config.data.length,
        "train_length": config.data.length,
        "tokenizer": tokenizer_fingerprint(data.tokenizer),
        "data": data.fingerprint,
        "plugins": list(config.plugins),
    }
    rows = data.recall_rows
    if rows is not None and rows.options.share > 0:
        about["recall"] = rows.facts()
    elif recall := _earlier_recall(config, resumed):
        about["recall"] = recall
    return LanguageModule(
        decoder_config(config, data.vocab_size, tokens_with(data.tokenizer, to_dict(config.model)["separators"])),
        to_dict(config.optimizer),
        max_steps,
        data.token_bytes,
        about,
        compile_model=config.trainer.compile,
        checkpoint_activations=config.trainer.checkpoint_activations,
        recall_tasks=[] if rows is None else rows.names,
    )


def _earlier_recall(config: DictConfig, resumed: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the weights that a run starts from were trained to recall."""
    if resumed is not None:
        return resumed.get("recall")
    return initial_recall(config.init) if config.get("init") else None


def _build_trainer(
    config: DictConfig,
    run: RunFolder,
    data: LanguageData,
    module: LanguageModule,
    max_steps: int,
    resumed: dict[str, Any] | None,
    signals: StopSignals,
) -> tuple[lightning.Trainer, Monitor]:
    options = config.trainer
    accelerator = choose_accelerator(options.accelerator)
    devices, nodes = launched_devices(this_launch(), options.strategy, options.devices, options.num_nodes)
    strategy = build_strategy(options.strategy)
    at_end = resumed is not None and resumed["step"] >= max_steps  # Lightning starts nothing at the end of its budget
    validate_first = [ValidateFirst(max_steps)] if resumed and resumed["validation_due"] else []
    monitor = Monitor(options.log_every, 3 * module.decoder.cost(config.data.length).flops_per_token)
    checkpoints = Checkpoints(run.checkpoints, options.checkpoint_every, options.keep_every, options.validate_every)
    guard = StopOnNonFinite(data.stores["train"], config.data.length, checkpoints)
    trainer = lightning.Trainer(
        default_root_dir=run.path,
        max_steps=max_steps + at_end,
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=strategy,
        precision=choose_precision(options.precision, accelerator),  # type: ignore[arg-type]
        gradient_clip_val=options.gradient_clip,
        logger=build_loggers(
            run.path,
            None if config.resume is None else resumed["step"] if resumed else 0,
            to_dict(config.logger),
            to_dict(config),
        ),
        callbacks=[
            *sharing_callbacks(config.get("share_heads")),
            guard,
            monitor,
            ProgressDisplay(monitor),
            ValidateAtEnd(),
            checkpoints,
            StopOnSignal(checkpoints, signals, max_steps),
            *validate_first,
        ],
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
    accumulate = data.accumulate(trainer.world_size)
    trainer.accumulate_grad_batches = accumulate
    trainer.val_check_interval = options.validate_every * accumulate
    return trainer, monitor


def _print_summary(
    config: DictConfig,
    run: RunFolder,
    module: LanguageModule,
    data: LanguageData,
    max_steps: int,
    matched: MatchResult | None,
) -> None:
    cost = module.decoder.cost(config.data.length)
    layers = module.decoder.config.layer_types
    store = data.stores["train"]
    tokens = max_steps * module.about["tokens_per_step"]
    match = f"{matched.line()}\n" if matched else ""
    found = "".join(f"{name:<10}{line}\n" for name, line in source_notes(data.source).items())
    recall, share = "", 0.0
    if data.recall_rows is not None:
        share = data.recall_rows.options.share
        recall = f"recall    {share:.0%} of the sequences: {' '.join(module.recall_tasks)}\n"
    print(
        f"run       {run.path}\n"
        f"model     {config.model.name}, {cost.parameters:,} parameters, "
        f"{cost.flops_per_token / 1e6:.1f} MFLOP per token forward\n"
        f"layers    {' '.join(layers)}\n{match}"
        f"data      {config.data.name}, {len(store):,} documents, {store.num_tokens:,} tokens to train on, "
        f"vocabulary {data.vocab_size:,}\n{found}{recall}"
        f"budget    {max_steps:,} steps of {module.about['tokens_per_step']:,} tokens, "
        f"{tokens * (1 - share) / max(store.num_tokens, 1):.2f} passes over the data",
        flush=True,
    )
