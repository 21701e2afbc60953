"""Overhead of the training loop: steps of a run against those of a bare PyTorch loop, in turn in one process.

    python scripts/bench_training.py [attention=softmax] [model.depth=2] ... [OPTION=VALUE ...]

Takes the options of train.py besides its own. Both loops have the same model, optimizer, batches and number of steps;
each is timed in turn, several times, and the medians of the times per step are compared.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from zoo.cli import answer_ctrl_c, friendly_errors

if __name__ == "__main__":
    answer_ctrl_c()

import torch
from annotated_types import Gt
from omegaconf import DictConfig

from zoo.config import to_dict
from zoo.data import BatchPlan
from zoo.data.datamodule import LanguageData
from zoo.data.sources.build import build_source
from zoo.model import Decoder
from zoo.model.from_config import Architecture, decoder_config
from zoo.model.loss import next_token_loss
from zoo.options.programs import TRAINING, compose_training
from zoo.schema.arguments import Arguments, read_arguments
from zoo.schema.base import Positive, Whole, option
from zoo.training.optimizers.build import SCHEDULE_KEYS, build_optimizer
from zoo.training.run import train

WARM_UP = 2  # steps whose times are left out


class Options(Arguments):
    """Options of the measurement."""

    rounds: Positive = option("rounds, of which the median is given", default=5)
    steps: Annotated[Whole, Gt(WARM_UP)] = option("of each loop in a round; the first two are left out", default=12)


def bare_loop(config: DictConfig, data: LanguageData) -> float:
    """Median seconds per step of forward, backward, clipping and update, batches cut from the store."""
    torch.manual_seed(config.seed)
    decoder = Decoder(decoder_config(Architecture.of(config), data.vocab_size))
    options = {k: v for k, v in to_dict(config.optimizer).items() if k not in SCHEDULE_KEYS}
    optimizer = build_optimizer(decoder, **options)
    store, length = data.store("train"), config.data.length
    plan = BatchPlan(store.num_tokens, length, config.trainer.batch_size, config.seed)
    times = []
    for step in range(config.trainer.max_steps):
        begin = time.perf_counter()
        windows = [store.tokens[start : start + length + 1].astype("int64") for start in plan.starts(step)]
        tokens = torch.stack([torch.from_numpy(w) for w in windows])
        loss, _ = next_token_loss(decoder.hidden(tokens[:, :-1]), decoder.head.weight, tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.trainer.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[WARM_UP:])


def run_loop(config: DictConfig) -> float:
    """Median seconds per step of a run, from the rates that it records, one per step."""
    from zoo.files import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        train(config, folder)
        rows = [row for row in read_metrics(Path(folder) / "metrics.jsonl") if "train/tokens_per_second" in row]
    tokens = config.trainer.batch_size * config.data.length
    return statistics.median(tokens / row["train/tokens_per_second"] for row in rows[WARM_UP:])


def main() -> None:
    """Print the medians and the overhead."""
    chosen, overrides = read_arguments(Options, sys.argv[1:], __doc__, roots=TRAINING)
    config = compose_training(overrides)
    rare = 10**6
    config.trainer.update(max_steps=chosen.steps, max_tokens=None, log_every=1)
    config.trainer.update(validate_every=rare, checkpoint_every=rare)
    config.data.val_tokens = config.data.length
    data = LanguageData(
        build_source(to_dict(config.data.source)),
        to_dict(config.tokenizer),
        length=config.data.length,
        batch_size=config.trainer.batch_size,
        cache_dir=config.data.cache_dir,
    )
    data.prepare()
    pairs = []
    for number in range(chosen.rounds):
        pairs.append((bare_loop(config, data), run_loop(config)))
        print(
            f"round {number + 1}: bare {pairs[-1][0] * 1e3:.1f} ms, run {pairs[-1][1] * 1e3:.1f} ms per step",
            flush=True,
        )
    overhead = statistics.median(run / bare - 1 for bare, run in pairs)
    print(f"overhead of the training loop: {overhead:+.1%} (median of {chosen.rounds} rounds, {os.cpu_count()} cores)")


if __name__ == "__main__":
    with friendly_errors():
        main()
