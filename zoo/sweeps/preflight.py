"""Checks before the first arm of a sweep trains: every arm, and the data that its evaluations need.

Nothing is written but to the cache, which arms and evaluations use later.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from zoo.config import ConfigError, to_dict
from zoo.costs.matching import match_config
from zoo.data import build_tokenizer, tokens_with, vocabulary_size
from zoo.data.documents import DataError, Source
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.haystack import NoiseHaystack
from zoo.data.recall.options import RecallOptions
from zoo.data.recall.samples import RecallError
from zoo.data.recall_data import check_fit
from zoo.data.sources.build import build_source
from zoo.evaluation.evaluate import check_task
from zoo.evaluation.tasks.base import build_task
from zoo.model import Decoder
from zoo.model.from_config import Architecture, decoder_config
from zoo.options.budget import step_budget
from zoo.options.train import read_config
from zoo.runs.subject import OwnText, Subject
from zoo.sweeps.arms import merge, override_name
from zoo.sweeps.compose import PlannedRun, SweepPlan
from zoo.sweeps.evaluations import EvalTask
from zoo.sweeps.ledger import config_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RECALL = "data.recall.tasks"
TRAINED_ON = ("train", "validation")


@dataclass(frozen=True)
class Ground:
    """Data and tokenizer that ``runs`` share, so that checks which depend on these alone are made once."""

    runs: list[PlannedRun]
    source: Source
    tokenizer: PreTrainedTokenizerFast

    @property
    def config(self) -> DictConfig:
        """Configuration of the first run."""
        return self.runs[0].config

    def __str__(self) -> str:
        others = len({run.arm for run in self.runs}) - 1
        return f"arm {self.runs[0].arm}" + (f" and {others} more" if others else "")


def prepare(plan: SweepPlan) -> SweepPlan:
    """Checks every arm and every evaluation of a plan, and returns the plan.

    Recall tasks to train on that a preset brings, and that do not fit the sequences of some arm, are left out for all
    arms, with a line that says so.

    Raises:
        ConfigError: with the arm, the task and the option to change.
    """
    print(f"looking at {len(plan.arms)} arms and their {len(plan.tasks)} evaluations", flush=True)
    for run in _one_of_each(plan.runs):
        with _named(f"arm {run.arm}"):
            read_config(run.config)
    grounds = list(_grounds(plan.runs))
    plan, grounds = _without_unfit(plan, grounds)
    for ground in grounds:
        for run in _one_of_each(ground.runs):
            with _named(f"arm {run.arm}"):
                _check_arm(run.config, ground)
        for task in plan.tasks:
            with _named(f"{ground}, task {task.label}"):
                _check_evaluation(ground, task)
    return plan


def _one_of_each(runs: Sequence[PlannedRun]) -> Iterator[PlannedRun]:
    """The first run of every arm: seeds change nothing of what is looked at."""
    seen: set[str] = set()
    for run in runs:
        if run.arm not in seen:
            seen.add(run.arm)
            yield run


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise ConfigError(f"{what}: {error}") from error


def _grounds(runs: Sequence[PlannedRun]) -> Iterator[Ground]:
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        key = json.dumps([to_dict(run.config.data), to_dict(run.config.tokenizer)], sort_keys=True)
        groups.setdefault(key, []).append(run)
    for members in groups.values():
        config = members[0].config
        with _named(f"arm {members[0].arm}"):
            source = build_source(to_dict(config.data.source))
            for split in TRAINED_ON:
                if next(iter(source.documents(split)), None) is None:
                    raise DataError(f"{config.data.name} has no documents of the split {split!r}, which training needs")
            tokenizer = build_tokenizer(to_dict(config.tokenizer), source, config.data.cache_dir)
        yield Ground(members, source, tokenizer)


def _check_arm(config: DictConfig, ground: Ground) -> None:
    """Budget, sizes and matching of an arm."""
    step_budget(config.trainer, config.data.length)
    _decoder(config, ground.tokenizer)
    match_config(config, vocabulary_size(ground.tokenizer))


def _decoder(config: DictConfig, tokenizer: PreTrainedTokenizerFast) -> Decoder:
    """The decoder of a configuration, without memory."""
    separators = tokens_with(tokenizer, to_dict(config.model)["separators"])
    with torch.device("meta"):
        return Decoder(decoder_config(Architecture.of(config), vocabulary_size(tokenizer), separators))


def _check_evaluation(ground: Ground, task: EvalTask) -> None:
    """Ask of a run as training would leave it all that can be asked before it exists."""
    config, recall = ground.config, ground.config.data.get("recall")
    text = OwnText(str(config.data.name), to_dict(config.data.source), config.data.cache_dir, {})
    adapted = recall is not None and recall.share > 0
    subject = Subject(_decoder(config, ground.tokenizer), ground.tokenizer, config.data.length, text, adapted)
    composed = task.compose()
    check_task(subject, build_task(to_dict(composed.task)), composed.seed)


def _without_unfit(plan: SweepPlan, grounds: list[Ground]) -> tuple[SweepPlan, list[Ground]]:
    """The plan without the recall tasks that a preset brings and that do not fit, and its grounds."""
    unfit = {variant: reason for ground in grounds for variant, reason in _unfit(ground, plan).items()}
    if not unfit:
        return plan, grounds
    overrides = _left_out(next(node for g in grounds if (node := g.config.data.get("recall")) is not None), unfit)
    names = ", ".join(dict.fromkeys(" ".join(variant) for variant in unfit))
    print(f"not trained on, for they do not fit data.length of every arm: {names}", flush=True)
    changed = {run.key: _changed(run, overrides) for run in plan.runs}
    grounds = [replace(ground, runs=[changed[run.key] for run in ground.runs]) for ground in grounds]
    return replace(plan, runs=[changed[run.key] for run in plan.runs]), grounds


def _unfit(ground: Ground, plan: SweepPlan) -> dict[tuple[str, str], str]:
    """Task and variant of what does not fit and was not asked for by name, with the reason.

    Raises:
        ConfigError: if what the command line or an arm names does not fit, or if nothing fits.
    """
    node = ground.config.data.get("recall")
    if node is None:
        return {}
    found: dict[tuple[str, str], str] = {}
    with _named(str(ground)):
        entries = RecallOptions.read(to_dict(node)).entries()
        encoder, length = Encoder(ground.tokenizer), ground.config.data.length
        own = [override for arm in plan.arms for override in arm.overrides]
        named = {override_name(override) for override in [*plan.given, *own]}
        for entry in entries:
            try:
                for seed in plan.seeds:
                    check_fit(entry, length, seed, encoder, NoiseHaystack(encoder))
            except RecallError as error:
                if any(name == RECALL or name.startswith(f"{RECALL}.{entry.name}.") for name in named):
                    raise
                found[entry.name, entry.variant] = str(error)
        if len(found) == len(entries):
            raise RecallError(f"none of {RECALL} fits: {next(iter(found.values()))}")
    return found


def _left_out(recall: DictConfig, unfit: dict[tuple[str, str], str]) -> dict[str, Any]:
    """What is to be set so that the rest of the variants of each task is left."""
    entries = RecallOptions.read(to_dict(recall)).entries()
    values: dict[str, Any] = {}
    for name in dict.fromkeys(name for name, _ in unfit):
        rest = [entry.variant for entry in entries if entry.name == name and (name, entry.variant) not in unfit]
        values |= {f"{RECALL}.{name}.variants": rest} if rest else {f"{RECALL}.{name}.weight": 0.0}
    return values


def _changed(run: PlannedRun, values: dict[str, Any]) -> PlannedRun:
    if run.config.data.get("recall") is None:
        return run
    config = run.config.copy()
    for name, value in values.items():
        OmegaConf.update(config, name, value)
    lines = [f"{name}={f'[{chr(44).join(v)}]' if isinstance(v, list) else v}" for name, v in values.items()]
    return replace(run, config=config, overrides=merge(run.overrides, lines), key=config_key(config))
