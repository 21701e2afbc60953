"""Plan of a head conversion: the layers that it changes, and the configuration of the decoder after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zoo import mixers
from zoo.config import ConfigError
from zoo.conversion.head_merging import METHODS, TARGETS, Layout, refusal
from zoo.mixers.gqa import GroupedQueryAttention, default_kv_heads
from zoo.mixers.softmax import SoftmaxAttention
from zoo.model.decoder import Decoder, DecoderConfig
from zoo.runs.provenance import layer_pattern

CONVERTIBLE = (SoftmaxAttention, GroupedQueryAttention)  # and not what is derived from them


@dataclass(frozen=True)
class ConversionPlan:
    """What a conversion will change.

    Attributes:
        to: ``gqa`` or ``mqa``.
        kv_heads: number of key heads of a converted layer.
        method: method of :mod:`zoo.conversion.head_merging`.
        layers: indices of the converted layers.
        layouts: layout of each of them before the conversion.
        config: configuration of the converted decoder.
    """

    to: str
    kv_heads: int
    method: str
    layers: list[int]
    layouts: list[Layout]
    config: DecoderConfig


def plan_conversion(decoder: Decoder, to: str, kv_heads: int | None, method: str) -> ConversionPlan:
    """Which layers a conversion changes, and the configuration after it.

    Layers of the mixers softmax and gqa are converted; layers with at most ``kv_heads`` key heads stay unchanged.

    Args:
        decoder: decoder to convert.
        to: ``gqa`` or ``mqa``.
        kv_heads: number of key heads per layer; None for the target's default.
        method: ``mean``, ``first`` or ``svd``.

    Raises:
        ConfigError: if these do not exist, do not fit together or cannot convert a layer, or no layer is left.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r}: expected one of {', '.join(METHODS)}.")
    config, kv_heads = decoder.config, _checked_heads(decoder.config, to, kv_heads)
    found = {n: layout_of(m) for n, block in enumerate(decoder.layers) if type(m := block.mixer) in CONVERTIBLE}
    found = {layer: layout for layer, layout in found.items() if layout.kv_heads >= kv_heads}
    if not found:
        raise ConfigError(
            f"nothing to convert: no layer has softmax attention with {kv_heads} key heads or more. "
            f"The layers are {layer_pattern(config.layer_types)}."
        )
    for layer, layout in found.items():
        where = f"layer {layer} ({config.layer_types[layer]})"
        if layout.kv_heads % kv_heads:
            raise ConfigError(f"kv_heads={kv_heads} does not divide the {layout.kv_heads} key heads of {where}.")
        if layout.kv_heads > kv_heads and (reason := refusal(method, layout)):
            raise ConfigError(f"{where}: {reason}")
    layers = list(found)
    return ConversionPlan(
        to, kv_heads, method, layers, list(found.values()), _converted_config(config, layers, to, kv_heads)
    )


def _checked_heads(config: DecoderConfig, to: str, kv_heads: int | None) -> int:
    if to not in TARGETS:
        raise ConfigError(f"to={to}: expected {' or '.join(TARGETS)}.")
    if to == "mqa" and kv_heads not in (None, 1):
        raise ConfigError(f"kv_heads={kv_heads}: to=mqa has one key head; use to=gqa for more.")
    if kv_heads is None:
        return default_kv_heads(config.heads) if to == "gqa" else 1
    if kv_heads < 1 or config.heads % kv_heads:
        divisors = ", ".join(str(g) for g in range(1, config.heads + 1) if config.heads % g == 0)
        raise ConfigError(f"kv_heads={kv_heads} does not divide the model's {config.heads} heads: expected {divisors}.")
    return kv_heads


def _converted_config(config: DecoderConfig, layers: Sequence[int], to: str, kv_heads: int) -> DecoderConfig:
    """The configuration with new entries, one for every old entry of the converted layers."""
    types = list(config.layer_types)
    kept = {name for layer, name in enumerate(types) if layer not in layers}
    entries = {name: options for name, options in config.mixers.items() if name in kept}
    renamed: dict[str, str] = {}
    for layer in layers:
        old = types[layer]
        if old not in renamed:
            options = dict(config.mixers.get(old, {}))
            options = {key: value for key, value in options.items() if key not in ("name", "kv_heads")}
            options |= {"kv_heads": kv_heads} if to == "gqa" else {}
            new = _free_name(old, to, {*kept, *renamed.values()})
            renamed[old] = new
            entries[new] = options if new == to else {"name": to, **options}
        types[layer] = renamed[old]
    return replace(config, layer_types=types, mixers=entries)


def _free_name(old: str, to: str, taken: set[str]) -> str:
    """The target's own name if it is free, else one made of the old entry's; never that of another mixer."""
    taken = taken | (set(mixers.names()) - {to})
    for name in (to, f"{old}_{to}", *(f"{old}_{to}_{n}" for n in range(2, 1000))):
        if name not in taken:
            return name
    raise AssertionError("a thousand entries of one name")


def layout_of(mixer: mixers.Mixer) -> Layout:
    """Returns the properties of a softmax mixer that decide how its heads may be merged."""
    assert isinstance(mixer, SoftmaxAttention)
    return Layout(
        mixer.heads,
        mixer.kv_heads,
        rotated=mixer.rotated,
        normed=mixer.key_norm is not None,
        gated=mixer.gate is not None,
    )
