"""Training speed of whole models by attention and context, measured in turn in one process.

    python scripts/bench_models.py [arms=softmax,3xlightning+softmax] [model.width=128 ...] [OPTION=VALUE ...]

Every arm trains on the same number of random tokens per step (forward, backward, clipping, AdamW). The medians of
several rounds are printed and written as JSON. Options with a dot, and groups, are those of train.py.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from zoo.cli import answer_ctrl_c, friendly_errors

if __name__ == "__main__":
    answer_ctrl_c()

import torch

from zoo.files import replace_text
from zoo.model import Decoder, DecoderConfig
from zoo.model.from_config import Architecture, decoder_config
from zoo.model.loss import next_token_loss
from zoo.options.programs import TRAINING, compose_training
from zoo.schema.arguments import Arguments, OutputFile, read_arguments
from zoo.schema.base import Positive, option
from zoo.training.optimizers.build import adamw

ARMS = ["softmax", "gqa", "mqa", "lightning", "3xlightning+softmax"]


class Options(Arguments):
    """Options of the measurement."""

    out: OutputFile | None = option("file of the JSON; empty: none", default=None)
    contexts: list[Positive] = option("tokens of a sequence", default=[512, 1024, 2048, 4096], min_length=1)
    tokens: Positive = option("tokens of a step, over all its sequences", default=4096)
    model: str = option("a file of configs/model", default="nano")
    vocab: Positive = option("tokens of the vocabulary", default=2048)
    arms: list[str] = option("attentions or schedule patterns", default=ARMS, min_length=1)
    rounds: Positive = option("rounds, of which the medians are given", default=5)


def training_step(config: DecoderConfig, batch: int, context: int) -> tuple[Callable[[], None], int]:
    """A function that takes one optimizer step, and the number of parameters."""
    torch.manual_seed(0)
    decoder, vocab = Decoder(config), config.vocab_size
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
    chosen, overrides = read_arguments(Options, sys.argv[1:], __doc__, roots=TRAINING)
    overrides = [f"model={chosen.model}", *overrides]
    configs = {
        arm: decoder_config(Architecture.of(compose_training([*overrides, f"schedule.pattern={arm}"])), chosen.vocab)
        for arm in chosen.arms
    }
    rows = []
    for context in chosen.contexts:
        batch = max(1, chosen.tokens // context)
        steps = {arm: training_step(config, batch, context) for arm, config in configs.items()}
        times: dict[str, list[float]] = {arm: [] for arm in configs}
        for number in range(chosen.rounds + 1):
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
    if chosen.out:
        about = {"model": chosen.model, "threads": torch.get_num_threads(), "torch": torch.__version__}
        about |= {"machine": platform.machine(), "tokens_per_step": chosen.tokens, "rounds": chosen.rounds}
        about["overrides"] = overrides
        replace_text(Path(chosen.out), json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    with friendly_errors():
        main()
