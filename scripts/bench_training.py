"""Overhead of the training loop: steps of a run against those of a bare PyTorch loop, in turn in one process.

    python scripts/bench_training.py [attention=softmax] [model.depth=2] ...

Takes the options of train.py. Both loops have the same model, optimizer, batches and number of steps; each is timed in
turn, several times, and the medians of the times per step are compared.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hydra
from omegaconf import DictConfig, OmegaConf

from zoo.config import instantiate, register_mixers, run_dir, to_dict
from zoo.data import BatchPlan
from zoo.data.datamodule import LanguageData
from zoo.model import Decoder
from zoo.model.loss import next_token_loss
from zoo.training.configuration import decoder_config
from zoo.training.module import SCHEDULE_KEYS
from zoo.training.optimizers import build_optimizer
from zoo.training.run import train

ROUNDS, STEPS = 5, 12


def bare_loop(config: DictConfig, data: LanguageData) -> float:
    """Median seconds per step of forward, backward, clipping and update, batches cut from the store."""
    torch.manual_seed(config.seed)
    decoder = Decoder(decoder_config(config, data.vocab_size))
    options = {k: v for k, v in to_dict(config.optimizer).items() if k not in SCHEDULE_KEYS}
    optimizer = build_optimizer(decoder, **options)
    store, length = data.store("train"), config.data.length
    plan = BatchPlan(store.num_tokens, length, config.trainer.batch_size, config.seed)
    times = []
    for step in range(STEPS):
        begin = time.perf_counter()
        windows = [store.tokens[start : start + length + 1].astype("int64") for start in plan.starts(step)]
        tokens = torch.stack([torch.from_numpy(w) for w in windows])
        loss, _ = next_token_loss(decoder.hidden(tokens[:, :-1]), decoder.head.weight, tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), config.trainer.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def run_loop(config: DictConfig) -> float:
    """Median seconds per step of a run, from the rates that it records, one per step."""
    from zoo.files import read_metrics

    with tempfile.TemporaryDirectory() as folder:
        train(config, folder)
        rows = [row for row in read_metrics(Path(folder) / "metrics.jsonl") if "train/tokens_per_second" in row]
    tokens = config.trainer.batch_size * config.data.length
    return statistics.median(tokens / row["train/tokens_per_second"] for row in rows[2:])


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    """Print the medians and the overhead."""
    config.trainer.update(max_steps=STEPS, max_tokens=None, log_every=1, validate_every=10**6, checkpoint_every=10**6)
    config.data.val_tokens = config.data.length
    data = LanguageData(
        instantiate(config.data.source),
        to_dict(config.tokenizer),
        length=config.data.length,
        batch_size=config.trainer.batch_size,
        cache_dir=config.data.cache_dir,
    )
    data.prepare()
    pairs = []
    for number in range(ROUNDS):
        pairs.append((bare_loop(config, data), run_loop(config)))
        print(
            f"round {number + 1}: bare {pairs[-1][0] * 1e3:.1f} ms, run {pairs[-1][1] * 1e3:.1f} ms per step",
            flush=True,
        )
    overhead = statistics.median(run / bare - 1 for bare, run in pairs)
    print(f"overhead of the training loop: {overhead:+.1%} (median of {ROUNDS} rounds, {os.cpu_count()} cores)")


if __name__ == "__main__":
    OmegaConf.register_new_resolver("run_dir", run_dir, replace=True)
    sys.argv += ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    register_mixers()
    main()
