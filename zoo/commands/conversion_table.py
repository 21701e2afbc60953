"""A run, its conversions and what they became: a table of held-out bits per byte, cache and speed of decoding.

    python scripts/conversion_table.py RUN_DIR ... [OPTION=VALUE ...]

Each run must have been evaluated (python eval.py run=RUN_DIR task=perplexity). Decoding is greedy, of ``batch``
sequences after ``context`` random tokens; the runs take turns, and the median over the rounds is given.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from zoo.evaluation.results.records import read_held_out
from zoo.runs.loaded_run import OpenedRun, open_run
from zoo.schema.arguments import Arguments, OutputFile, read_arguments
from zoo.schema.base import Positive, option
from zoo.tables import Cell, Table, write_tables

HEAD = (
    "run",
    "key heads of query heads, by layer",
    "bits per byte",
    "95 % interval",
    "bytes of cache",
    "tokens/s of decoding",
)


class Options(Arguments):
    """Options of the table."""

    out: OutputFile | None = option(
        "file of the table in Markdown, beside which is one in LaTeX that ends in .tex; empty: it is only printed",
        default=None,
    )
    context: Positive = option("random tokens before decoding", default=512)
    batch: Positive = option("sequences that are decoded together", default=8)
    tokens: Positive = option("steps of decoding in a round", default=32)
    rounds: Positive = option("rounds, of which the median is given", default=5)


def quality(run: OpenedRun) -> tuple[str, str]:
    """Returns held-out bits per byte and its interval, of the run's own evaluation."""
    _, record = read_held_out(run.folder)
    low_high = record.ci95
    return f"{record.value:.4f}", "-" if low_high is None else f"{low_high[0]:.4f} to {low_high[1]:.4f}"


@torch.no_grad()
def decoding_seconds(run: OpenedRun, context: int, batch: int, tokens: int) -> float:
    """Measures the seconds of ``tokens`` decoding steps of ``batch`` sequences after a prompt of ``context`` tokens."""
    decoder = run.decoder
    ids = torch.randint(0, decoder.config.vocab_size, (batch, context), generator=torch.Generator().manual_seed(0))
    cache = decoder.new_cache(batch, context + tokens)
    token = decoder(ids, cache=cache)[:, -1:].argmax(-1)
    begin = time.perf_counter()
    for _ in range(tokens):
        token = decoder(token, cache=cache)[:, -1:].argmax(-1)
    return time.perf_counter() - begin


def main(arguments: list[str]) -> None:
    """Reads the runs, measures decoding, prints and writes the table."""
    chosen, folders = read_arguments(Options, arguments, __doc__, rest="RUN_DIR")
    if not folders:
        raise ValueError("no run: expected the folders that train.py and scripts/convert.py wrote.")
    context, batch, tokens, rounds = chosen.context, chosen.batch, chosen.tokens, chosen.rounds
    runs = [open_run(folder) for folder in folders]
    found = [quality(run) for run in runs]
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for run, seconds in zip(runs, times):
            taken = decoding_seconds(run, context, batch, tokens)
            seconds += [taken] if number else []  # the first round warms up
    rows = []
    for run, (value, interval), seconds in zip(runs, found, times):
        decoder = run.decoder
        size = decoder.cost(context, decoder.head.weight.dtype).cache_bytes
        mixers = [block.mixer for block in decoder.layers]
        heads = " ".join(f"{m.kv_heads}/{m.heads}" if hasattr(m, "kv_heads") else "-" for m in mixers)
        speed = batch * tokens / statistics.median(seconds)
        rows.append([Cell(text) for text in (run.folder.name, heads, value, interval, f"{size:,}", f"{speed:,.0f}")])
    table = Table("Conversions", HEAD, rows)
    dtype = str(runs[0].decoder.head.weight.dtype).removeprefix("torch.")
    note = (
        f"Cache of one sequence of {context:,} tokens, in {dtype}. Decoding: {batch} sequences on the CPU with "
        f"{torch.get_num_threads()} threads, {tokens} tokens each, median of {rounds} rounds."
    )
    text = f"{table.to_markdown()}\n\n{note}\n"
    print(text, end="")
    if chosen.out:
        write_tables(Path(chosen.out), [table], text)
