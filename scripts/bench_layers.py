"""Time of one layer of every attention, forward and backward, in turn in one process; JSON and a Markdown table.

    python scripts/bench_layers.py [attentions=softmax,window,dilated:window=256] [OPTION=VALUE ...]

An attention may have options behind colons: NAME:OPTION=VALUE:OPTION=VALUE.
``mixing`` is the attention alone: what a mixer does with queries, keys and values. ``density`` is the share of the
causal pairs that lie in blocks of 64 tokens it has to read (for linear and top-k attention: its FLOPs over those of
exact attention). A sparse attention whose mixing is more than 0.6 / density times as fast wastes little.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo.cli import answer_ctrl_c, choose_device, friendly_errors

if __name__ == "__main__":
    answer_ctrl_c()

import torch
import yaml

import zoo
from zoo.files import replace_text
from zoo.mixers import Mixer
from zoo.mixers.dilated import DilatedAttention
from zoo.mixers.longformer import LongformerAttention
from zoo.mixers.parts.heads import Call, HeadMixer
from zoo.mixers.window import WindowAttention
from zoo.schema.arguments import Arguments, OutputFile, read_arguments
from zoo.schema.base import Positive, option

BLOCK = 64


class Options(Arguments):
    """Options of the measurement."""

    out: OutputFile | None = option("file of the JSON; empty: the table is only printed", default=None)
    length: Positive = option("tokens of a sequence", default=8192)
    width: Positive = option("width of the layer", default=512)
    heads: Positive = option("heads of the layer", default=8)
    rounds: Positive = option("rounds, of which the medians are given", default=5)
    attentions: list[str] = option("attentions with their options; empty: all that exist", default=[])
    device: str = option("cpu or cuda", default="cpu")


def build(text: str, width: int, heads: int) -> Mixer:
    """The mixer of ``NAME:OPTION=VALUE:...``; ValueError on what is not of that form."""
    name, *given = text.split(":")
    if wrong := [part for part in given if "=" not in part]:
        raise ValueError(f"attentions={text}: {wrong[0]!r} is not OPTION=VALUE.")
    chosen = {key: yaml.safe_load(value) for key, _, value in (part.partition("=") for part in given)}
    return zoo.mixers.build(name, width=width, heads=heads, depth=4, layer=1, **chosen)


def passes(mixer: Mixer, length: int, device: torch.device) -> dict[str, Callable[[], None]]:
    """A forward and backward pass of the layer, and of its mixing alone where that is a part of its own."""
    x = torch.randn(1, length, mixer.width, device=device, requires_grad=True)
    weight = torch.randn(1, length, mixer.width, device=device)

    def layer() -> None:
        (mixer(x) * weight).sum().backward()

    if not isinstance(mixer, HeadMixer):
        return {"layer": layer}
    shapes = [(1, length, n, mixer.head_width) for n in (mixer.heads, mixer.kv_heads, mixer.kv_heads)]
    heads = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    call = Call(x, torch.arange(length, device=device)[None], None, None, None, None)

    def mixing() -> None:
        y = mixer.mix(*heads, call)
        y.backward(weight.view(y.shape))

    return {"layer": layer, "mixing": mixing}


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def listed(length: int, window: int, first: int = 0) -> float:
    """Share of the causal pairs that are in the blocks of a window, and of the ``first`` tokens."""
    pairs = 0
    for query in range(0, length, BLOCK):
        blocks = range(max(query - window + 1, 0) // BLOCK * BLOCK, query, BLOCK)
        others = sum(1 for key in range(0, first, BLOCK) if key < (blocks.start if blocks else query))
        rows = min(BLOCK, length - query)
        pairs += rows * BLOCK * (len(blocks) + others) + rows * (rows + 1) // 2
    return pairs / (length * (length + 1) // 2)


def density(mixer: Any, length: int, dense: float) -> float:
    """Share of the causal pairs that a mixer has to read."""
    if isinstance(mixer, DilatedAttention):
        rates = [(d.rate, d.taps or length) for d in mixer.dilations]
        return statistics.mean(listed(-(-length // rate), taps) / rate for rate, taps in rates)
    if isinstance(mixer, WindowAttention):
        return listed(length, mixer.window, mixer.sink_tokens)
    if isinstance(mixer, LongformerAttention):
        return listed(length, mixer.window, mixer.tokens.first)
    return mixer.mixing_flops(length) / dense if isinstance(mixer, HeadMixer) else 1.0


def measure(chosen: Options) -> list[dict[str, Any]]:
    """One record per attention: medians over rounds in which all take their turns."""
    length, device = chosen.length, choose_device(chosen.device)
    names = ["softmax", *(name for name in chosen.attentions or zoo.mixers.names() if name != "softmax")]
    mixers = {name: build(name, chosen.width, chosen.heads) for name in names}
    work = {name: passes(mixer.to(device), length, device) for name, mixer in mixers.items()}
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(chosen.rounds + 1):
        for name in names:
            for part, run in work[name].items():
                taken = seconds(run, device)
                if number:
                    times.setdefault((name, part), []).append(taken)
    medians = {key: statistics.median(values) for key, values in times.items()}
    dense = cast(HeadMixer, mixers["softmax"]).mixing_flops(length)
    rows = []
    for name in names:
        row: dict[str, Any] = {"attention": name, "density": density(mixers[name], length, dense)}
        for part in work[name]:
            row[f"{part}_ms"] = round(1000 * medians[name, part], 1)
            row[f"{part}_speedup"] = round(medians["softmax", part] / medians[name, part], 2)
        row["wanted"] = round(0.6 / row["density"], 2)
        rows.append(row)
    return rows


def main() -> None:
    """Measure, print, write."""
    chosen, _ = read_arguments(Options, sys.argv[1:], __doc__)
    rows = measure(chosen)
    print("| attention | layer, ms | speed-up | mixing, ms | speed-up | pairs to read | 0.6 / that |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        mixing = f"{row['mixing_ms']:,.0f} | {row['mixing_speedup']:.1f}" if "mixing_ms" in row else "| "
        print(
            f"| `{row['attention']}` | {row['layer_ms']:,.0f} | {row['layer_speedup']:.1f} | {mixing} "
            f"| {100 * row['density']:.1f} % | {row['wanted']:.1f} |"
        )
    if chosen.out:
        about = chosen.model_dump(include={"length", "width", "heads", "rounds", "device"})
        about |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine()}
        about["date"] = time.strftime("%Y-%m-%d")
        replace_text(Path(chosen.out), json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with friendly_errors():
        main()
