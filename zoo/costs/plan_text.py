"""Plans as text and as plain values for JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from zoo.costs.hardware import DTYPES, Hardware
from zoo.costs.roofline import TRAINED, Phase, decoding, floor, prefill, training
from zoo.costs.textbook import causal_window_layers
from zoo.costs.tile_sizes import LINEAR_FORMULA, SOFTMAX_FORMULA, ProposedTile, linear_tile, softmax_tile
from zoo.model import Decoder

BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
DECIMAL = ("", "k", "M", "G", "T", "P", "E")
HOW = """\
train     FLOPs are {factor} x forward. Held: fp32 weights, gradients and moments of {optimizer}, and {kept}.
          Moved: weights read twice in {dtype}, the fp32 state and the activations written once and read once.
prefill   FLOPs are one forward pass, logits of the last token only. Moved: weights, caches, activations.
decode    One token for each of {batch} rows. Moved: weights, what the token reads of the caches, states written back.
          Times are floors: the larger of FLOPs / peak and bytes / bandwidth, on one device, nothing overlooked."""


@dataclass(frozen=True)
class Request:
    """Request for a plan: sequences of ``context`` tokens, ``batch`` at a time, with numbers of ``dtype``."""

    context: int
    batch: int
    dtype: str
    optimizer: str = "adamw"
    recompute: bool = False


def phases(decoder: Decoder, request: Request) -> list[Phase]:
    """Returns training (if the dtype can be trained in), prefill and decoding."""
    context, batch, dtype = request.context, request.batch, request.dtype
    first = [training(decoder, context, batch, dtype, request.optimizer, request.recompute)] if dtype in TRAINED else []
    return [*first, prefill(decoder, context, batch, dtype), decoding(decoder, context, batch, dtype)]


def describe(name: str, decoder: Decoder, request: Request, hardware: Hardware) -> str:
    """Returns the whole plan as text, for a terminal."""
    kind = DTYPES[request.dtype]
    cost = decoder.cost(request.context, kind)
    peak = unit(hardware.peak[request.dtype], "FLOP/s")
    lines = [
        f"model     {name}: {cost.parameters:,} parameters, vocabulary {decoder.config.vocab_size:,}, "
        f"layers {_layers(decoder)}",
        f"request   batch {request.batch:,}, context {request.context:,}, {request.dtype}",
        f"hardware  {hardware.name}: {peak} {request.dtype}, {unit(hardware.bandwidth, 'B/s')}, "
        f"{unit(hardware.memory, 'B')}, ridge {hardware.ridge(request.dtype):.0f} FLOP/B",
        f"cost      forward {unit(cost.flops_per_token, 'FLOP')} a token, decoding "
        f"{unit(cost.decode_flops_per_token, 'FLOP')} a token, cache {binary(cost.cache_bytes)} a sequence (causal)",
    ]
    lines += [f"note      {hardware.note}"] if hardware.note else []
    found = phases(decoder, request)
    lines += ["", *_table(found, hardware, request.dtype), "", "bytes moved and held"]
    for phase in found:
        lines.append(f"  {phase.name:8}moved: {_parts(phase.traffic)}")
        lines.append(f"  {'':8}held:  {_parts(phase.memory)}")
    lines += ["", *_tiles(decoder, request, hardware), *_windows(decoder, request.context), "", _how(request)]
    return "\n".join(lines)


def as_dict(name: str, decoder: Decoder, request: Request, hardware: Hardware) -> dict[str, Any]:
    """Returns the same plan as plain values, in seconds, bytes and FLOPs."""
    rows = []
    for phase in phases(decoder, request):
        least = floor(phase, hardware, request.dtype)
        rows.append(
            asdict(phase)
            | {"intensity": phase.intensity, "bound": least.bound, "compute_seconds": least.compute}
            | {"transfer_seconds": least.transfer, "seconds": least.seconds, "fits": phase.held <= hardware.memory}
        )
    tiles = {key: tile and asdict(tile) for key, tile in _proposals(decoder, request, hardware).items()}
    return {
        "model": name,
        "layers": decoder.config.layer_types,
        "request": asdict(request),
        "hardware": asdict(hardware) | {"ridge": hardware.ridge(request.dtype)},
        "cost": asdict(decoder.cost(request.context, DTYPES[request.dtype])),
        "phases": rows,
        "tiles": tiles,
    }


def unit(value: float, name: str) -> str:
    """Formats a value with three digits and a decimal prefix."""
    power = 0
    while value >= 999.5 and power < len(DECIMAL) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {DECIMAL[power]}{name}"


def binary(value: float) -> str:
    """Formats bytes with a binary prefix."""
    power = 0
    while value >= 1023.5 and power < len(BINARY) - 1:
        value, power = value / 1024, power + 1
    return f"{value:.4g} {BINARY[power]}"


def seconds(value: float) -> str:
    """Formats seconds with three digits and ns, us, ms, s or h."""
    for scale, name in ((1e-6, "ns"), (1e-3, "µs"), (1.0, "ms"), (3600.0, "s")):
        if value < scale:
            return f"{value / scale * (3600 if name == 's' else 1000):.3g} {name}"
    return f"{value / 3600:.3g} h"


def _table(found: list[Phase], hardware: Hardware, dtype: str) -> list[str]:
    rows = [("phase", "tokens", "FLOPs", "moved", "FLOP/B", "bound by", "at least", "tokens/s", "held", "fits")]
    for phase in found:
        least = floor(phase, hardware, dtype)
        rows.append(
            (
                phase.name,
                f"{phase.tokens:,}",
                unit(phase.flops, "FLOP"),
                binary(phase.moved),
                f"{phase.intensity:.3g}",
                least.bound,
                seconds(least.seconds),
                f"<= {unit(phase.tokens / least.seconds, '').strip()}",
                binary(phase.held),
                "yes" if phase.held <= hardware.memory else "NO",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _layers(decoder: Decoder) -> str:
    runs = [(name, len(list(group))) for name, group in groupby(decoder.config.layer_types)]
    if len(runs) > 8:
        return ", ".join(f"{count} x {name}" for name, count in Counter(decoder.config.layer_types).items())
    return " + ".join(f"{count} x {name}" if count > 1 else name for name, count in runs)


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {binary(value)}" for name, value in parts.items())


def _proposals(decoder: Decoder, request: Request, hardware: Hardware) -> dict[str, ProposedTile | None]:
    sizes = *_head_dims(decoder), DTYPES[request.dtype].itemsize, request.context
    return {"softmax": softmax_tile(hardware, *sizes), "linear": linear_tile(hardware, *sizes)}


def _head_dims(decoder: Decoder) -> tuple[int, int]:
    """The most numbers that a query and a value of any layer have."""
    head_dims, value_dims = zip(*(block.mixer.head_widths for block in decoder.layers))
    return max(head_dims), max(value_dims)


def _tiles(decoder: Decoder, request: Request, hardware: Hardware) -> list[str]:
    head_dim, value_dim = _head_dims(decoder)
    where = f"{binary(hardware.on_chip)} on chip per core"
    where += f", {binary(hardware.registers)} of registers" if hardware.registers else ""
    wide = f"{head_dim}" if head_dim == value_dim else f"{head_dim} and values of {value_dim}"
    lines = [f"tiles for heads of {wide} ({where})"]
    names = {"softmax": ("queries x keys", SOFTMAX_FORMULA), "linear": ("chunk x columns", LINEAR_FORMULA)}
    for key, tile in _proposals(decoder, request, hardware).items():
        shape, formula = names[key]
        if tile is None:
            lines.append(f"  {key:8}nothing fits: {formula}")
            continue
        over = "above" if tile.intensity >= hardware.ridge(request.dtype) else "below"
        lines += [
            f"  {key:8}{tile.rows} x {tile.columns} ({shape}): {binary(tile.staged)} in tiles, "
            f"{binary(tile.accumulated)} in accumulators; {binary(tile.traffic)} moved per head and sequence, "
            f"{tile.intensity:.3g} FLOP/B, {over} the ridge",
            f"  {'':8}{formula}",
        ]
    return lines


def _windows(decoder: Decoder, context: int) -> list[str]:
    """How far the windows of the layers reach, where all layers have one."""
    windows = [reach for block in decoder.layers if (reach := block.mixer.window_reach) is not None]
    if len(windows) < len(decoder.layers) or max(windows) < 2:
        return []
    reach, widest = sum(window - 1 for window in windows) + 1, max(windows)
    return [
        "",
        f"reach     causal: by its windows alone a token meets {reach:,} tokens after {len(windows)} layers; to meet "
        f"{context:,}, windows of {widest:,} need {causal_window_layers(context, widest):,} layers",
    ]


def _how(request: Request) -> str:
    kept = "4 C + 2 H (D + E) + 4 M numbers a token and layer"
    if request.recompute:
        kept = f"C numbers a token and layer, and of one layer {kept.removesuffix(' and layer')}"
    values = {"factor": 4 if request.recompute else 3, "kept": kept, "batch": f"{request.batch:,}"}
    return HOW.format(**values, optimizer=request.optimizer, dtype=request.dtype)
