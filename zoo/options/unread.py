"""Notes on options that were typed and that nothing will read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from omegaconf import DictConfig

from zoo.mixers.window import WindowAttention
from zoo.model.decoder import DecoderConfig
from zoo.model.from_config import decoder_config
from zoo.options.budget import step_budget


def notes(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """One line on all that is not read, and one for each thing that is worth a word.

    Args:
        config: checked.
        overrides: that were typed.
    """
    typed = {o.lstrip("+~").partition("=")[0].partition("@")[0]: o for o in overrides}
    built = decoder_config(config, 1)
    unread = [f"{typed[key]} ({why})" for key in typed if (why := _why(key, config, built))]
    lines = [f"nothing reads {', '.join(unread)}."] if unread else []
    return [*lines, *_windows(config, built), *_warmup(config, typed)]


def _why(key: str, config: DictConfig, built: DecoderConfig) -> str | None:
    """Why nothing reads the option ``key``; None if something does."""
    for start, rule in RULES.items():
        if key == start or key.startswith(f"{start}."):
            return rule(key, config, built)
    return None


def _attention(key: str, config: DictConfig, built: DecoderConfig) -> str | None:
    used = set(built.layer_types)
    return None if key != "attention" or config.attention in used else _layers(built)


def _mixer(key: str, config: DictConfig, built: DecoderConfig) -> str | None:
    entry = key.split(".")[1] if "." in key else ""
    wanted = {*built.layer_types, *_reference_layers(config)}
    return _layers(built) if entry and entry not in wanted else None


def _reference_layers(config: DictConfig) -> set[str]:
    """Attentions of the reference that sizes are matched with."""
    match = config.get("match")
    if match is None or match.quantity is None:
        return set()
    reference = config.copy()
    for part in ("attention", "schedule"):
        if (value := (match.reference or {}).get(part)) is not None:
            reference.merge_with({part: value})
    return set(decoder_config(reference, 1).layer_types)


def _layers(built: DecoderConfig) -> str:
    return f"the layers are {', '.join(dict.fromkeys(built.layer_types))}"


def _match(key: str, config: DictConfig, built: DecoderConfig) -> str | None:
    return "match=none" if key != "match" and config.match.quantity is None else None


def _sweep(key: str, config: DictConfig, built: DecoderConfig) -> str | None:
    return "no sweep" if key != "sweep" else None


def _sharing(key: str, config: DictConfig, built: DecoderConfig) -> str | None:
    return "share_heads.kv_heads=null" if config.share_heads.kv_heads is None else None


def _decay(key: str, config: DictConfig, built: DecoderConfig) -> str | None:
    schedule = config.optimizer.schedule
    return f"optimizer.schedule={schedule}" if schedule != "wsd" else None


def _final(key: str, config: DictConfig, built: DecoderConfig) -> str | None:
    return "optimizer.schedule=constant" if config.optimizer.schedule == "constant" else None


def _max_steps(key: str, config: DictConfig, built: DecoderConfig) -> str | None:
    return "trainer.max_tokens takes its place" if config.trainer.max_tokens is not None else None


RULES: dict[str, Callable[[str, DictConfig, DecoderConfig], str | None]] = {
    "attention": _attention,
    "mixers": _mixer,
    "match": _match,
    "sweep": _sweep,
    "share_heads.method": _sharing,
    "share_heads.steps": _sharing,
    "optimizer.decay_fraction": _decay,
    "optimizer.final_factor": _final,
    "trainer.max_steps": _max_steps,
}


def _windows(config: DictConfig, built: DecoderConfig) -> Iterator[str]:
    """Windows that leave nothing out."""
    from zoo import mixers

    length = config.data.length
    for entry in dict.fromkeys(built.layer_types):
        options = built.mixers.get(entry, {})
        name = options.get("name", entry)
        window = options.get("window", 0)
        if mixers.get(name) is WindowAttention and window >= length:
            yield f"mixers.{entry}.window={window} covers all {length} tokens of data.length: it trains softmax."


def _warmup(config: DictConfig, typed: dict[str, str]) -> Iterator[str]:
    """A warm-up that never ends, where it was asked for."""
    steps = step_budget(config)
    if "optimizer.warmup_steps" in typed and config.optimizer.warmup_steps >= steps:
        yield (
            f"optimizer.warmup_steps={config.optimizer.warmup_steps} is not less than the budget of {steps} steps: the "
            "rate does not reach its peak."
        )
