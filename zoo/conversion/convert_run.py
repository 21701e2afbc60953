"""Conversion of a trained run to fewer key heads: a new run folder whose softmax layers are gqa or mqa."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from zoo.config import ConfigError
from zoo.conversion.conversion_plan import ConversionPlan, plan_conversion
from zoo.conversion.head_merging import METHODS, HeadErrors, refusal, share_heads
from zoo.model.checkpoint import PREFIX, write_checkpoint
from zoo.model.decoder import Decoder
from zoo.paths import expand
from zoo.runs.corpus import open_corpus
from zoo.runs.loaded_run import OpenedRun
from zoo.runs.provenance import layer_pattern
from zoo.runs.run_folder import RunFolder, write_json


@dataclass(frozen=True)
class Conversion:
    """Result of converting a run.

    Attributes:
        folder: the new run folder.
        plan: what was changed.
        errors: for each method, the errors of every converted layer; a method that cannot convert this run is missing.
        cache_bytes: bytes of the cache of a sequence of the training length, before and after, in the dtype of the
            weights.
    """

    folder: Path
    plan: ConversionPlan
    errors: dict[str, list[HeadErrors]]
    cache_bytes: tuple[int, int]


@torch.no_grad()
def convert_decoder(
    decoder: Decoder, plan: ConversionPlan, moments: Sequence[Tensor] | None = None
) -> tuple[Decoder, list[HeadErrors]]:
    """Converts a decoder; device, dtype and mode stay the same.

    Args:
        decoder: decoder to convert.
        plan: what to change.
        moments: from :func:`second_moments`, to minimize and to measure errors of keys and values, not of weights.

    Returns:
        The converted decoder, and the errors of every converted layer.
    """
    state, errors = dict(decoder.state_dict()), []
    for layer, layout in zip(plan.layers, plan.layouts):
        mixer = decoder.layers[layer].mixer
        covariance = None if moments is None else moments[layer]
        weights, found = share_heads(mixer.state_dict(), layout, plan.kv_heads, plan.method, covariance)
        state |= {f"blocks.{layer}.mixer.{name}": value for name, value in weights.items()}
        errors.append(found)
    weight = decoder.embedding.weight
    converted = Decoder(plan.config).to(weight.device, weight.dtype)
    converted.load_state_dict(state)
    return converted.train(decoder.training), errors


@torch.no_grad()
def second_moments(decoder: Decoder, ids: Tensor) -> list[Tensor]:
    """Computes ``E[x x^T]`` ``(C, C)`` in fp64 of the input of every layer's mixer, over the tokens ``ids (N, T)``."""
    width, device = decoder.config.width, decoder.embedding.weight.device
    sums = [torch.zeros(width, width, dtype=torch.float64, device=device) for _ in decoder.layers]

    def add(layer: int) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].flatten(0, -2).double()
            sums[layer] += x.mT @ x / ids.numel()

        return hook

    handles = [block.mixer.register_forward_pre_hook(add(n)) for n, block in enumerate(decoder.layers)]
    try:
        for row in ids:
            decoder.hidden(row[None].to(device))
    finally:
        for handle in handles:
            handle.remove()
    return sums


def calibration_tokens(run: OpenedRun, tokens: int) -> Tensor:
    """Samples about ``tokens`` tokens of the run's training text ``(N, T)``, in sequences spread over it.

    Raises:
        ConfigError: if tokens < 1.
        DataError: if the text is not available.
    """
    if tokens < 1:
        raise ConfigError(f"whiten_tokens={tokens}: expected a number >= 1.")
    stream = open_corpus(run.subject, "train").store.tokens
    length = min(run.trained.train_length, len(stream), tokens)
    count = min(max(1, tokens // length), len(stream) // length)
    starts = torch.linspace(0, len(stream) - length, count).long().tolist()
    return torch.stack([torch.from_numpy(stream[start : start + length].astype("int64")) for start in starts])


def convert_run(
    run: OpenedRun,
    to: str = "gqa",
    kv_heads: int | None = None,
    method: str = "svd",
    out: str | Path | None = None,
    whiten_tokens: int | None = None,
) -> Conversion:
    """Writes a run folder with the converted model, for evaluation, generation and ``init=`` of training.

    Args:
        run: the opened run.
        to: ``gqa`` or ``mqa``.
        kv_heads: number of key heads per layer; None for the target's default.
        method: ``mean``, ``first`` or ``svd``.
        out: the new folder; None for one beside the run's, named after the conversion.
        whiten_tokens: minimize errors over so many tokens of the run's training text; None for errors of weights.

    Raises:
        ConfigError: if the folder exists, and as in :func:`zoo.conversion.conversion_plan.plan_conversion`.
    """
    plan = plan_conversion(run.decoder, to, kv_heads, method)
    folder = expand(out) if out else _default_folder(run, plan, whiten_tokens is not None)
    if folder.exists():
        raise ConfigError(f"{folder} exists already: set out= to a folder that does not.")
    moments = None
    if whiten_tokens is not None:
        moments = second_moments(run.decoder, calibration_tokens(run, whiten_tokens))
    decoder, errors = convert_decoder(run.decoder, plan, moments)
    possible = (m for m in METHODS if m == method or not any(refusal(m, layout) for layout in plan.layouts))
    table: dict[str, list[HeadErrors]] = {
        name: errors if name == method else convert_decoder(run.decoder, replace(plan, method=name), moments)[1]
        for name in possible
    }
    _write_run(run, folder, decoder, plan, whiten_tokens, table)
    length, dtype = run.trained.train_length, decoder.embedding.weight.dtype
    before, after = (model.cost(length, dtype).cache_bytes for model in (run.decoder, decoder))
    return Conversion(folder, plan, table, (before, after))


def _default_folder(run: OpenedRun, plan: ConversionPlan, whitened: bool) -> Path:
    heads = str(plan.kv_heads) if plan.to == "gqa" else ""
    path = run.folder.resolve()
    return path.with_name(f"{path.name}-{plan.to}{heads}-{plan.method}{'-whitened' if whitened else ''}")


def _run_config(run: OpenedRun, plan: ConversionPlan) -> DictConfig:
    """The run's configuration, changed so that training builds the converted decoder from it."""
    config, types = OmegaConf.create(OmegaConf.to_container(run.config)), run.decoder.config.layer_types
    assert isinstance(config, DictConfig)
    OmegaConf.update(config, "schedule.pattern", layer_pattern(plan.config.layer_types), force_add=True)
    OmegaConf.update(config, "schedule.patch", None, force_add=True)
    for name, options in plan.config.mixers.items():
        OmegaConf.update(config, f"mixers.{name}", options, merge=False, force_add=True)
    renamed = {types[layer]: plan.config.layer_types[layer] for layer in plan.layers}
    config.attention = renamed.get(config.attention, config.attention)
    config.resume = None
    return config


def _write_run(
    run: OpenedRun,
    folder: Path,
    decoder: Decoder,
    plan: ConversionPlan,
    whiten_tokens: int | None,
    errors: dict[str, list[HeadErrors]],
) -> None:
    """The new folder, in one piece."""
    facts: dict[str, Any] = {
        "from": str(run.folder.resolve()),
        "checkpoint": run.checkpoint,
        "sha256": run.sha256,
        "whiten_tokens": whiten_tokens,
        **{name: getattr(plan, name) for name in ("to", "kv_heads", "method", "layers")},
    }
    table = {name: [asdict(error) for error in rows] for name, rows in errors.items()}
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    new = RunFolder(unfinished)
    try:
        unfinished.mkdir(parents=True)
        new.describe(_run_config(run, plan))
        shutil.copytree(run.folder / "tokenizer", new.tokenizer)
        write_json(unfinished / "conversion.json", {**facts, "errors": table})
        content: dict[str, Any] = {
            "decoder": decoder.config.to_dict(),
            "state_dict": {f"{PREFIX}{name}": value.cpu() for name, value in decoder.state_dict().items()},
            "global_step": run.trained.step,
        }
        replace(run.trained, converted=facts).write(content)
        write_checkpoint(content, new.checkpoints / "last.ckpt")
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
