"""Facts of an arm apart from its scores: layers, size, cache, FLOPs, and measured speed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from zoo.costs.roofline import share_costs
from zoo.model import Decoder
from zoo.model.from_config import Architecture, decoder_config
from zoo.sweeps.page.read import RunData, SweepData

FULL_SOFTMAX = ("softmax", "gqa", "mqa")  # mixers that read every key; the rest keep a state, a window or a choice
RATE = "train/tokens_per_second"


@dataclass(frozen=True)
class ArmFacts:
    """Facts of one arm; unknown ones are None or empty.

    Attributes:
        layers: entry of ``mixers`` of each layer.
        share: share of layers that are full softmax attention, 0..1.
        parameters: number of parameters of the whole model.
        train_length: tokens of a training sequence.
        train_tokens: tokens seen in training.
        flops: forward FLOPs per token, at ``train_length``.
        cache: bytes of the cache of a sequence, by length in tokens, in the dtype of the evaluation.
        dtype: dtype of the evaluation.
    """

    layers: tuple[str, ...] = ()
    share: float | None = None
    parameters: int | None = None
    train_length: int | None = None
    train_tokens: int | None = None
    flops: float | None = None
    cache: Mapping[int, float] = field(default_factory=dict)
    dtype: str = ""


def arm_facts(sweep: SweepData, arm: str) -> ArmFacts:
    """Returns the facts of an arm, from its finished and evaluated run with the lowest seed."""
    run = next((run for run in sweep.finished(arm).values() if run.evaluations), None)
    if run is None:
        return ArmFacts()
    results = [written.results for written in run.evaluations.values()]
    model = results[0].model
    layers, length = tuple(model.layers), model.train_len
    entries = {} if run.config is None else run.config.get("mixers") or {}
    cache: dict[int, float] = {}
    for result in results:
        state, growing = result.model.state_bytes, result.model.kv_bytes
        cache |= {int(n): float(state[n] + growing[n]) for n in state if n in growing}
    return ArmFacts(
        layers,
        _softmax_share(layers, entries),
        model.params,
        length,
        model.train_tokens,
        _flops(run.config, results[0].tokenizer.vocab, length),
        dict(sorted(cache.items())),
        results[0].run.dtype,
    )


def _softmax_share(layers: tuple[str, ...], mixers: Mapping[str, Any]) -> float | None:
    """Share of the layers whose mixer is full softmax attention; None where layers are not known.

    Args:
        layers: entry of each.
        mixers: options of entries.
    """
    names = [mixers.get(layer, {}).get("name", layer) for layer in layers]
    return sum(name in FULL_SOFTMAX for name in names) / len(names) if names else None


def _flops(config: DictConfig | None, vocab: int | None, length: int | None) -> float | None:
    """FLOPs per token; None for a configuration that cannot be built any more."""
    if config is None or vocab is None or length is None:
        return None
    try:
        with torch.device("meta"):
            decoder = Decoder(decoder_config(Architecture.of(config), vocab))
        return float(share_costs(decoder).cost(length).flops_per_token)
    except (ValueError, KeyError, TypeError, OmegaConfBaseException):
        return None


def cache_length(facts: Iterable[ArmFacts]) -> int | None:
    """Returns the longest length at which the cache of every arm is known."""
    known = [set(one.cache) for one in facts if one.cache]
    return max(set.intersection(*known), default=None) if known else None


def speeds(runs: Iterable[RunData]) -> list[float]:
    """Returns the median training speed of each run, tokens/s, which is measured and differs each time."""
    rates = ([row[RATE] for row in run.metrics if isinstance(row.get(RATE), (int, float))] for run in runs)
    return [statistics.median(found) for found in rates if found]


def environment_lines(sweep: SweepData) -> list[tuple[str, str]]:
    """Returns software, hardware and source of the finished runs; several values of a key where runs differ."""
    found: dict[str, dict[str, None]] = {}
    for run in (run for run in sweep.runs if run.environment or run.git):
        for key, value in [*_environment(run.environment), *_source(run.git)]:
            found.setdefault(key, {})[value] = None
    return [(key, "; ".join(values)) for key, values in found.items()]


def _environment(content: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for key in ("python", "platform", "processor", "cpus", "threads", "cuda"):
        if content.get(key) is not None:
            yield key, str(content[key])
    if content.get("devices"):
        yield "devices", ", ".join(map(str, content["devices"]))
    packages = content.get("packages")
    if isinstance(packages, dict):
        yield "packages", ", ".join(f"{name} {version}" for name, version in packages.items())


def _source(content: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if content.get("commit"):
        yield "commit", f"{content['commit']}{' with changes' if content.get('dirty') else ''}"


def common_settings(sweep: SweepData) -> list[tuple[str, str]]:
    """Returns data and budget of the training; several values where runs differ."""
    keys = ("data.name", "data.length", "tokenizer.kind", "model.name", "trainer.max_tokens", "trainer.max_steps")
    lines = []
    for key in (*keys, "trainer.batch_size", "optimizer.name", "optimizer.lr"):
        values = [OmegaConf.select(run.config, key) for run in sweep.runs if run.config is not None]
        shown = dict.fromkeys(str(value) for value in values if value is not None)
        if shown:
            lines.append((key, "; ".join(shown)))
    return lines
