"""Training speed of whole models by attention and context, measured in turn in one process.

    python scripts/bench_models.py [out=docs/speed.json] [contexts=512,1024,2048] [tokens=4096] [model=nano]
                                   [arms=softmax,3xlightning+softmax] [rounds=5] [model.width=128 ...]

Every arm trains on the same number of random tokens per step (forward, backward, clipping, AdamW). The medians of
several rounds are printed and written as JSON.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hydra import compose, initialize_config_dir

from zoo.cli import friendly_errors
from zoo.config import CONFIGS, register_mixers
from zoo.files import replace_text
from zoo.model import Decoder
from zoo.model.loss import next_token_loss
from zoo.training.configuration import decoder_config
from zoo.training.optimizers import adamw

ARMS = "softmax,gqa,mqa,lightning,3xlightning+softmax"
DEFAULTS = {"out": "", "contexts": "512,1024,2048,4096", "tokens": "4096", "model": "nano", "vocab": "2048"}
DEFAULTS |= {"arms": ARMS, "rounds": "5"}


def options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """KEY=VALUE arguments over the defaults, and those of train.py, with a dot; ValueError on an unknown key."""
    overrides = [a for a in arguments if "." in a.partition("=")[0]]
    given = dict(a.partition("=")[::2] for a in arguments if a not in overrides)
    if unknown := set(given) - set(DEFAULTS):
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}: expected {', '.join(DEFAULTS)}.")
    return {**DEFAULTS, **given}, overrides


def training_step(overrides: list[str], vocab: int, batch: int, context: int) -> tuple[Callable[[], None], int]:
    """A function that takes one optimizer step, and the number of parameters."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("train", overrides)
    torch.manual_seed(0)
    decoder = Decoder(decoder_config(config, vocab))
    optimizer = adamw(decoder, lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95))
    tokens = torch.randint(0, vocab, (batch, context + 1))

    def step() -> None:
        loss, _ = next_token_loss(decoder.hidden(tokens[:, :-1]), decoder.head.weight, tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(p.numel() for p in decoder.parameters())


def main() -> None:
    """Measure, print, write."""
    chosen, overrides = options(sys.argv[1:])
    overrides, arms = [f"model={chosen['model']}", *overrides], chosen["arms"].split(",")
    register_mixers()
    rows = []
    for context in map(int, chosen["contexts"].split(",")):
        batch = max(1, int(chosen["tokens"]) // context)
        steps = {
            arm: training_step([*overrides, f"schedule.pattern={arm}"], int(chosen["vocab"]), batch, context)
            for arm in arms
        }
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        for number in range(int(chosen["rounds"]) + 1):
            for arm, (step, _) in steps.items():
                begin = time.perf_counter()
                step()
                if number:
                    times[arm].append(time.perf_counter() - begin)
        for arm, (_, parameters) in steps.items():
            rate = batch * context / statistics.median(times[arm])
            rows.append(
                {"attention": arm, "context": context, "parameters": parameters, "tokens_per_second": round(rate)}
            )
            print(f"{arm:22} context {context:6,}  {parameters:,} parameters  {rate:8,.0f} tokens/s", flush=True)
    if chosen["out"]:
        about = {"model": chosen["model"], "threads": torch.get_num_threads(), "torch": torch.__version__}
        about |= {
            "machine": platform.machine(),
            "tokens_per_step": int(chosen["tokens"]),
            "rounds": int(chosen["rounds"]),
        }
        about["overrides"] = overrides
        replace_text(Path(chosen["out"]), json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with friendly_errors():
        main()
