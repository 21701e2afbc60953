"""What a model costs and what a machine makes of it: training, prefill and decoding, tile sizes, and a picture.

    python scripts/plan.py attention=gqa context=32768 batch=8 hardware=h200 model=1b
    python scripts/plan.py schedule.pattern=7xlightning+softmax hardware=edge_npu hardware.on_chip=524288 dtype=int8
    python scripts/plan.py attentions=softmax,gqa,lightning,7xlightning+softmax hardware=my_chip.yaml
    python scripts/plan.py textbook=true

attention=, schedule.pattern=, mixers.NAME.OPTION=, model=, tokenizer= and every other option of train.py mean what they
mean there, and have the same defaults. Options of its own:

    context=32768     tokens of a sequence, in training, in the prompt and in the cache
    batch=1           sequences at a time
    hardware=h200     a file of configs/hardware or a path to such a file; hardware.KEY=VALUE changes a figure
    dtype=auto        fp32, tf32, bf16, fp16, fp8 or int8, of weights and caches; auto: bf16 where there is a rate
    vocab=            tokens of the vocabulary, where the tokenizer's configuration does not say it
    attentions=       names or schedule patterns for the picture, joined by commas; all that exist by default
    out=runs/plan     folder for plan.json and plan.png; empty for none
    textbook=false    print answers to textbook questions instead

The picture has a curve per attention: least time of a decoding step of the batch, cache of a sequence, FLOPs of
training. What is counted, and what is assumed, is printed at the end and stands in zoo/planning/roofline.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from zoo import mixers
from zoo.cli import friendly_errors
from zoo.config import CONFIGS, register_mixers
from zoo.files import replace_text
from zoo.model import Decoder
from zoo.planning.curves import CONTEXTS, Panel, draw_curves
from zoo.planning.hardware import DTYPES, Hardware, load_hardware
from zoo.planning.report import Request, as_dict, binary, describe, seconds, unit
from zoo.planning.roofline import decoding, floor, share_costs
from zoo.planning.textbook import textbook
from zoo.training.configuration import decoder_config

DEFAULTS = {
    "context": "32768",
    "batch": "1",
    "hardware": "h200",
    "dtype": "auto",
    "vocab": "",
    "attentions": "",
    "out": "runs/plan",
    "textbook": "false",
}
VOCABULARIES = {"bytes": 257}


def split(arguments: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Options of this program, changes of the hardware, and overrides for Hydra."""
    own, changes, rest = dict(DEFAULTS), [], []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        elif key.startswith("hardware."):
            changes.append(argument.removeprefix("hardware."))
        else:
            rest.append(argument)
    return own, changes, rest


def positive(own: dict[str, str], key: str) -> int:
    """A whole number >= 1; ValueError otherwise."""
    try:
        value = int(own[key])
    except ValueError:
        value = 0
    if value < 1:
        raise ValueError(f"{key}={own[key]}: expected a whole number >= 1.")
    return value


def flag(own: dict[str, str], key: str) -> bool:
    """Whether an option is true; ValueError if it is neither true nor false."""
    if own[key] not in ("true", "false"):
        raise ValueError(f"{key}={own[key]}: expected true or false.")
    return own[key] == "true"


def composed(overrides: list[str]) -> DictConfig:
    """The configuration that train.py would have; ValueError on what it would refuse."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        keys = ", ".join(DEFAULTS)
        raise ValueError(f"{error} (options of plan.py: {keys}; all others are those of train.py)") from error


def build(overrides: list[str], vocab: int | None) -> tuple[DictConfig, Decoder]:
    """A decoder without storage; ValueError if its vocabulary is not known."""
    config = composed(overrides)
    size = vocab or config.tokenizer.get("vocab_size") or VOCABULARIES.get(config.tokenizer.kind)
    if size is None:
        raise ValueError(f"the vocabulary of tokenizer={config.tokenizer.kind} is not in its file: give vocab=NUMBER.")
    with torch.device("meta"):
        return config, share_costs(Decoder(decoder_config(config, size)))


def picture(
    file: Path, arms: list[str], overrides: list[str], vocab: int, request: Request, hardware: Hardware, model: str
) -> None:
    """Decoding time, cache and training FLOPs of each attention over contexts from 1k to 1M."""
    time: dict[str, list[float]] = {}
    cache: dict[str, list[float]] = {}
    flops: dict[str, list[float]] = {}
    for arm in arms:
        _, decoder = build([*overrides, f"schedule.pattern={arm}", "schedule.patch=null"], vocab)
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
    draw_curves(file, f"{model} with each attention in all layers, {hardware.name}, {request.dtype}", panels)


def main() -> None:
    """Plan, print, write."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return
    own, changes, overrides = split(sys.argv[1:])
    if flag(own, "textbook"):
        print("\n".join(f"{question:95} {answer}" for question, answer in textbook()))
        return
    register_mixers()
    hardware = load_hardware(own["hardware"], changes)
    context, batch = positive(own, "context"), positive(own, "batch")
    config, decoder = build(overrides, positive(own, "vocab") if own["vocab"] else None)
    request = Request(
        context,
        batch,
        hardware.choose_dtype(own["dtype"]),
        config.optimizer.name,
        config.trainer.checkpoint_activations,
    )
    print(describe(config.model.name, decoder, request, hardware), flush=True)
    if own["out"]:
        folder = Path(own["out"])
        plan = as_dict(config.model.name, decoder, request, hardware)
        replace_text(folder / "plan.json", json.dumps(plan, indent=1) + "\n")
        arms = own["attentions"].split(",") if own["attentions"] else mixers.names()
        vocab = decoder.config.vocab_size
        picture(folder / "plan.png", arms, overrides, vocab, request, hardware, config.model.name)
        print(f"\nwritten   {folder / 'plan.json'}, {folder / 'plan.png'}")


if __name__ == "__main__":
    with friendly_errors():
        main()
