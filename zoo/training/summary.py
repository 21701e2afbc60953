"""Summary of a run that is printed before its first step."""

from __future__ import annotations

from pathlib import Path

from zoo.costs.matching import MatchResult
from zoo.data.datamodule import LanguageData
from zoo.data.documents import source_notes
from zoo.model import Decoder


def summary(
    folder: Path,
    model: str,
    dataset: str,
    decoder: Decoder,
    data: LanguageData,
    budget: int,
    matched: MatchResult | None,
) -> str:
    """Describes sizes, layers, data and budget of a run, a line each.

    Args:
        folder: folder of the run.
        model: name of the model's size.
        dataset: name of the data set.
        decoder: decoder that is trained.
        data: prepared data.
        budget: optimizer steps.
        matched: sizes that were solved for; None if there are none.
    """
    cost = decoder.cost(data.length)
    store, step = data.stores["train"], data.batch_size * data.length
    match = f"{matched.line()}\n" if matched else ""
    found = "".join(f"{name:<10}{line}\n" for name, line in source_notes(data.source).items())
    recall, share = "", 0.0
    if data.recall_rows is not None:
        share = data.recall_rows.options.share
        recall = f"recall    {share:.0%} of the sequences: {' '.join(data.recall_rows.names)}\n"
    return (
        f"run       {folder}\n"
        f"model     {model}, {cost.parameters:,} parameters, "
        f"{cost.flops_per_token / 1e6:.1f} MFLOP per token forward\n"
        f"layers    {' '.join(decoder.config.layer_types)}\n{match}"
        f"data      {dataset}, {len(store):,} documents, {store.num_tokens:,} tokens to train on, "
        f"vocabulary {data.vocab_size:,}\n{found}{recall}"
        f"budget    {budget:,} steps of {step:,} tokens, "
        f"{budget * step * (1 - share) / max(store.num_tokens, 1):.2f} passes over the data"
    )
