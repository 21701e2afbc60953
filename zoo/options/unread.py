"""Notes on options that were typed and that nothing reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from omegaconf import DictConfig

from zoo.model.decoder import Decoder, DecoderConfig
from zoo.model.from_config import Architecture, decoder_config
from zoo.options.budget import step_budget


def notes(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Returns one line on all options that are not read, and one for each other remark.

    Args:
        config: checked configuration.
        overrides: overrides as typed.
    """
    typed = {o.lstrip("+~").partition("=")[0].partition("@")[0]: o for o in overrides}
    built = decoder_config(Architecture.of(config), 1)
    layers = f"the layers are {', '.join(dict.fromkeys(built.layer_types))}"
    reasons = _reasons(config, config.attention in built.layer_types, layers)
    entries = {key.split(".")[1] for key in typed if key.startswith("mixers.")}
    for entry in entries - {*built.layer_types, *_reference_layers(config)}:
        reasons |= {f"mixers.{entry}": layers, f"mixers.{entry}.": layers}
    unread = [f"{typed[key]} ({why})" for key in typed if (why := _why(key, reasons))]
    lines = [f"nothing reads {', '.join(unread)}."] if unread else []
    lines += _windows(built, config.data.length)
    if "optimizer.warmup_steps" in typed:
        lines += _warmup(config.optimizer.warmup_steps, step_budget(config.trainer, config.data.length))
    return lines


def _why(key: str, reasons: Mapping[str, str]) -> str | None:
    """Why nothing reads the option ``key``; None if something does."""
    paths = (path for path in reasons if key == path or (path.endswith(".") and key.startswith(path)))
    return reasons.get(next(paths, ""))


def _reasons(config: DictConfig, chosen: bool, layers: str) -> dict[str, str]:
    """Why nothing reads an option, by its path; a path that ends with a point stands for all options below it.

    Args:
        config: checked.
        chosen: whether a layer has the attention of ``attention=``.
        layers: what they are, in words.
    """
    schedule = config.optimizer.schedule
    alone = (config.get("share_heads") or {}).get("kv_heads") is None
    unread = {
        "attention": (not chosen, layers),
        "match.": ((config.get("match") or {}).get("quantity") is None, "match=none"),
        "sweep.": (True, "no sweep"),
        "share_heads.method": (alone, "share_heads.kv_heads=null"),
        "share_heads.steps": (alone, "share_heads.kv_heads=null"),
        "optimizer.decay_fraction": (schedule != "wsd", f"optimizer.schedule={schedule}"),
        "optimizer.final_factor": (schedule == "constant", f"optimizer.schedule={schedule}"),
        "trainer.max_steps": (config.trainer.max_tokens is not None, "trainer.max_tokens takes its place"),
    }
    return {path: why for path, (holds, why) in unread.items() if holds}


def _reference_layers(config: DictConfig) -> set[str]:
    """Attentions of the reference that sizes are matched with."""
    match = config.get("match")
    if match is None or match.quantity is None:
        return set()
    reference = config.copy()
    for part in ("attention", "schedule"):
        if (value := (match.reference or {}).get(part)) is not None:
            reference.merge_with({part: value})
    return set(decoder_config(Architecture.of(reference), 1).layer_types)


def _windows(built: DecoderConfig, length: int) -> Iterator[str]:
    """Windows that leave nothing out."""
    with torch.device("meta"):
        layers = Decoder(built).layers
    for entry, block in dict(zip(built.layer_types, layers)).items():
        reach = block.mixer.window_reach
        if reach is not None and reach >= length:
            yield f"mixers.{entry}: a window of {reach} tokens covers all {length} of data.length: it trains softmax."


def _warmup(warmup: int, steps: int) -> Iterator[str]:
    """A warm-up that never ends."""
    if warmup >= steps:
        yield (
            f"optimizer.warmup_steps={warmup} is not less than the budget of {steps} steps: the rate does not reach "
            "its peak."
        )
