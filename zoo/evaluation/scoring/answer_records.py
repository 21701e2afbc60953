"""Scored answers as one line per sample, and lines as records.

answer_nll is in nats per answer: of the whole answer, so that tokenizers can be compared. exact_match is by greedy
decoding, which teacher forcing shows in one pass; a sample with several answers matches if all do, and accuracy is the
share of its answers that do. rank_accuracy is the share of answers that are more likely than every other value
compared, and rank_accuracy_per_token, where these differ in length, that of those more likely per token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from zoo.data.recall.samples import Sample
from zoo.evaluation.results.models import Record
from zoo.evaluation.results.statistics import Estimate, bootstrap_mean, wilson
from zoo.evaluation.scoring.answers import AnswerScore
from zoo.evaluation.scoring.text_match import contains, exact_match, f1

GENERATED = "/generated"
RANKS = {"rank_accuracy": "rank", "rank_accuracy_per_token": "rank_per_token"}  # in the line of a sample


def describe_sample(place: dict[str, Any], sample: Sample, scores: Sequence[AnswerScore]) -> dict[str, Any]:
    """Returns the line of a sample in the samples file; ``place`` has its task, variant, length and depth."""
    line: dict[str, Any] = {
        "id": sample.id,
        **place,
        "nats": [score.nats for score in scores],
        "tokens": [score.tokens for score in scores],
        "correct": [score.correct for score in scores],
    }
    if sample.chance is not None:
        line["chance"] = sample.chance
    if any(score.rank is not None for score in scores):
        line |= {"rank": [score.rank for score in scores], "choices": [score.choices for score in scores]}
    if any(score.rank_per_token is not None for score in scores):
        line["rank_per_token"] = [score.rank_per_token for score in scores]
    if all(answer.references and score.generated is not None for answer, score in zip(sample.answers, scores)):
        line["references"] = [list(answer.references) for answer in sample.answers]
        line["generated"] = [score.generated or "" for score in scores]
    return line


def line_values(line: dict[str, Any]) -> dict[str, float]:
    """Returns what a sample contributes to each metric; NaN for its loss and ranks if the loss is not finite."""
    nats = np.array(line["nats"], dtype=np.float64)  # None becomes NaN
    values = {"answer_nll": float(nats.mean()), "exact_match": float(all(line["correct"]))}
    if len(line["correct"]) > 1:
        values["accuracy"] = float(np.mean(line["correct"]))
    for metric, key in RANKS.items():
        if ranks := [rank for rank in line.get(key, ()) if rank is not None]:
            values[metric] = float(np.mean([rank == 0 for rank in ranks])) if np.isfinite(nats).all() else math.nan
    if "generated" in line:
        pairs = list(zip(line["generated"], line["references"]))
        for metric, score in (("exact_match", exact_match), ("f1", f1), ("contains", contains)):
            values[metric + GENERATED] = float(np.mean([score(text, references) for text, references in pairs]))
    return values


def make_records(place: dict[str, Any], lines: list[dict[str, Any]], seed: int, seconds: float = 0.0) -> list[Record]:
    """Computes every metric of the samples of a cell, with 95 % intervals.

    Args:
        place: task, variant, length and depth.
        lines: lines of :func:`describe_sample`; those of one id, asked at several depths, count as one unit.
        seed: seed of the bootstrap.
        seconds: time that they took, 0 if it is not known.
    """
    columns: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        for metric, value in line_values(line).items():
            columns.setdefault(metric, {}).setdefault(line["id"], []).append(value)
    scored = sum(sum(line["tokens"]) for line in lines)
    records = []
    for metric, column in columns.items():
        name, generated = metric.removesuffix(GENERATED), metric.endswith(GENERATED)
        estimate = _estimate(np.array([np.mean(values) for values in column.values()]), seed)
        records.append(
            Record(
                **place | {"variant": place["variant"] + GENERATED * generated},
                metric=name,
                value=estimate.value,
                ci95=estimate.ci95,
                n=len(column),
                unit="sample",
                chance=_chance(lines, name),
                higher_is_better=name != "answer_nll",
                wall_s=round(seconds, 3) if seconds else None,
                tok_s=round(scored / seconds, 1) if seconds else None,
            )
        )
    return records


def _estimate(values: np.ndarray, seed: int) -> Estimate:
    """Mean with Wilson's interval for shares of samples and the bootstrap's for all else."""
    if np.isin(values, (0.0, 1.0)).all():
        return Estimate(float(values.mean()), wilson(int(values.sum()), len(values)))
    return bootstrap_mean(values, seed)


def _chance(lines: list[dict[str, Any]], metric: str) -> float | None:
    """What guessing gets: of ranks, among the values compared; of single answers, where the samples say it."""
    if metric in RANKS:
        return _chance_of_ranks(lines, RANKS[metric])
    single = "accuracy" if any(len(line["correct"]) > 1 for line in lines) else "exact_match"
    known = [line["chance"] for line in lines if "chance" in line]
    return float(np.mean(known)) if metric == single and len(known) == len(lines) else None


def _chance_of_ranks(lines: list[dict[str, Any]], key: str) -> float:
    """Mean accuracy of guessing among the values compared."""
    return float(
        np.mean(
            [
                np.mean([1 / choices for rank, choices in zip(line[key], line["choices"]) if rank is not None])
                for line in lines
                if any(rank is not None for rank in line.get(key, ()))
            ]
        )
    )
