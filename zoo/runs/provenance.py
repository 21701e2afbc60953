"""Sections of a result file that identify the run, the model and the tokenizer."""

from __future__ import annotations

import json
import platform
import sys
from datetime import datetime, timezone
from itertools import groupby
from typing import Any

import torch
from omegaconf import OmegaConf

from zoo.data import vocabulary_size
from zoo.model.decoder import Decoder
from zoo.paths import command
from zoo.runs.loaded_run import OpenedRun, file_sha256


def describe_run(run: OpenedRun, seed: int) -> dict[str, Any]:
    """Returns the section "run": where and how the numbers were made."""
    return {
        "id": run.folder.resolve().name,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git": _read_git(run),
        "cmd": command(*sys.orig_argv[1:]),
        "host": platform.node(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda if run.device.type == "cuda" else None,
        "device": torch.cuda.get_device_name(run.device) if run.device.type == "cuda" else run.device.type,
        "dtype": str(run.decoder.head.weight.dtype).removeprefix("torch."),
        "seed": seed,
    }


def describe_model(run: OpenedRun, lengths: list[int]) -> dict[str, Any]:
    """Returns the section "model", with the bytes of the cache of a sequence at each of ``lengths`` tokens."""
    decoder = run.decoder
    embeddings = {id(p): p.numel() for p in (decoder.embedding.weight, decoder.head.weight)}
    parameters = sum(p.numel() for p in decoder.parameters())
    split = {length: split_cache_bytes(decoder, length) for length in sorted({*lengths, run.trained.train_length})}
    return {
        "name": layer_pattern(decoder.config.layer_types),
        "config_sha": file_sha256(run.folder / "config.yaml"),
        "ckpt_sha": run.sha256,
        "checkpoint": run.checkpoint,
        "step": run.trained.step,
        "params": parameters,
        "params_non_emb": parameters - sum(embeddings.values()),
        "layers": list(decoder.config.layer_types),
        "train_tokens": run.trained.tokens,
        "train_len": run.trained.train_length,
        "adapted": bool(run.trained.recall),
        "recall": run.trained.recall,
        "state_bytes@L": {str(length): state for length, (state, _) in split.items()},
        "kv_bytes@L": {str(length): growing for length, (_, growing) in split.items()},
    }


def describe_tokenizer(run: OpenedRun, bytes_per_token: float | None) -> dict[str, Any]:
    """Returns the section "tokenizer"; ``bytes_per_token`` is measured on the evaluated text."""
    return {
        "name": OmegaConf.select(run.config, "tokenizer.id") or OmegaConf.select(run.config, "tokenizer.kind"),
        "sha": run.trained.tokenizer,
        "vocab": vocabulary_size(run.tokenizer),
        "bytes_per_token": bytes_per_token,
    }


def split_cache_bytes(decoder: Decoder, length: int) -> tuple[int, int]:
    """Bytes of the caches at ``length`` tokens: those that no longer grow, and those that grow with the text."""
    dtype = decoder.head.weight.dtype
    here, there = (decoder.cost(context, dtype).cache_bytes for context in (length, 2 * length))
    growing = there - here
    return here - growing, growing


def layer_pattern(layers: list[str]) -> str:
    """Formats layers as a schedule pattern, equal neighbors counted: ``7xlightning+softmax``."""
    runs = [(name, len(list(group))) for name, group in groupby(layers)]
    return "+".join(name if count == 1 else f"{count}x{name}" for name, count in runs)


def _read_git(run: OpenedRun) -> Any:
    try:
        return json.loads((run.folder / "git.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
