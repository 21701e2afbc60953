"""What a model costs and what a machine makes of it: training, prefill and decoding, tile sizes, and a picture.

    python scripts/plan.py attention=gqa context=32768 batch=8 hardware=h200 model=1b
    python scripts/plan.py schedule.pattern=7xlightning+softmax hardware=edge_npu hardware.on_chip=524288 dtype=int8
    python scripts/plan.py attentions=softmax,gqa,lightning,7xlightning+softmax hardware=my_chip.yaml
    python scripts/plan.py textbook=true

attention=, schedule.pattern=, mixers.NAME.OPTION=, model=, tokenizer= and every other option of train.py mean what they
mean there, and have the same defaults; python train.py --help lists them. hardware.KEY=VALUE changes a figure of the
machine.

The picture has a curve per attention: least time of a decoding step of the batch, cache of a sequence, FLOPs of
training. What is counted, and what is assumed, is printed at the end and stands in zoo/costs/roofline.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig

from zoo import mixers
from zoo.costs.cost_curves import CONTEXTS, Panel, draw_curves
from zoo.costs.hardware import DTYPES, Hardware, load_hardware
from zoo.costs.plan_text import Request, as_dict, binary, describe, seconds, unit
from zoo.costs.roofline import decoding, floor, share_costs
from zoo.costs.textbook import textbook
from zoo.files import replace_text
from zoo.model import Decoder, expand_schedule
from zoo.model.from_config import Architecture, decoder_config
from zoo.options.programs import TRAINING, compose_training
from zoo.plotting import picture_formats
from zoo.schema.arguments import Arguments, OutputFolder, read_arguments
from zoo.schema.base import FORMATS, Flag, PictureFormats, Positive, option

VOCABULARIES = {"bytes": 257}


class Options(Arguments):
    """Options of the plan."""

    context: Positive = option("tokens of a sequence, in training, in the prompt and in the cache", default=32768)
    batch: Positive = option("sequences at a time", default=1)
    hardware: str = option("a file of configs/hardware, or a path to such a file", default="h200")
    dtype: Literal["auto", "fp32", "tf32", "bf16", "fp16", "fp8", "int8"] = option(
        "type of weights and caches; auto: bf16 where there is a rate", default="auto"
    )
    vocab: Positive | None = option(
        "tokens of the vocabulary, where the tokenizer's configuration does not say it", default=None
    )
    attentions: list[str] = option("names or schedule patterns for the picture; empty: all that exist", default=[])
    out: OutputFolder | None = option("folder for plan.json and the picture; empty: none", default="runs/plan")
    formats: PictureFormats = option(FORMATS, default=["png"], min_length=1)
    textbook: Flag = option("print answers to textbook questions instead", default=False)


def split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into changes of the hardware, and overrides for Hydra."""
    changes = [a.removeprefix("hardware.") for a in arguments if a.startswith("hardware.")]
    return changes, [a for a in arguments if not a.startswith("hardware.")]


def build(overrides: list[str], vocab: int | None) -> tuple[DictConfig, Decoder]:
    """Builds a decoder without storage.

    Raises:
        ValueError: if its vocabulary is not known.
    """
    config = compose_training(overrides)
    size = vocab or config.tokenizer.get("vocab_size") or VOCABULARIES.get(config.tokenizer.kind)
    if size is None:
        raise ValueError(f"the vocabulary of tokenizer={config.tokenizer.kind} is not in its file: give vocab=NUMBER.")
    with torch.device("meta"):
        return config, share_costs(Decoder(decoder_config(Architecture.of(config), size)))


def picture(file: Path, arms: dict[str, Decoder], request: Request, hardware: Hardware, model: str) -> list[Path]:
    """Plots decoding time, cache and training FLOPs of each attention over contexts from 1k to 1M.

    It returns the files.
    """
    time: dict[str, list[float]] = {}
    cache: dict[str, list[float]] = {}
    flops: dict[str, list[float]] = {}
    for arm, decoder in arms.items():
        steps = [decoding(decoder, context, request.batch, request.dtype) for context in CONTEXTS]
        costs = [decoder.cost(context, DTYPES[request.dtype]) for context in CONTEXTS]
        time[arm] = [floor(step, hardware, request.dtype).seconds for step in steps]
        cache[arm] = [max(cost.cache_bytes, 1) for cost in costs]
        flops[arm] = [3 * cost.flops_per_token for cost in costs]
    panels = [
        Panel(f"decoding, batch {request.batch:,}: at least", "time of a step, a token per sequence", time, seconds),
        Panel("kept while decoding", "bytes per sequence", cache, binary, base=32),
        Panel("training", "FLOPs per token, forward and backward", flops, lambda y: unit(y, "FLOP")),
    ]
    title = f"{model} with each attention in all layers, {hardware.name}, {request.dtype}"
    return draw_curves(file, title, panels)


def main(arguments: list[str]) -> None:
    """Plans the model, prints the plan and writes it."""
    own, others = read_arguments(Options, arguments, __doc__, roots=(*TRAINING, "hardware"))
    if own.textbook:
        print("\n".join(f"{question:95} {answer}" for question, answer in textbook()))
        return
    changes, overrides = split(others)
    hardware = load_hardware(own.hardware, changes)
    config, decoder = build(overrides, own.vocab)
    request = Request(
        own.context,
        own.batch,
        hardware.choose_dtype(own.dtype),
        config.optimizer.name,
        config.trainer.checkpoint_activations,
    )
    vocab = decoder.config.vocab_size
    names = (own.attentions or mixers.names()) if own.out else []
    for name in names:
        known = [*mixers.names(), *config.mixers]
        expand_schedule(name, config.model.depth, config.attention, known, option="attentions")
    arms = {name: build([*overrides, f"schedule.pattern={name}", "schedule.patch=null"], vocab)[1] for name in names}
    print(describe(config.model.name, decoder, request, hardware), flush=True)
    if own.out:
        folder = Path(own.out)
        plan = as_dict(config.model.name, decoder, request, hardware)
        replace_text(folder / "plan.json", json.dumps(plan, indent=1) + "\n")
        with picture_formats(own.formats):
            files = picture(folder / "plan.png", arms, request, hardware, config.model.name)
        print(f"\nwritten   {', '.join(map(str, [folder / 'plan.json', *files]))}")
