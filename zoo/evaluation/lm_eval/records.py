"""Results of lm-evaluation-harness as records and samples of this project."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from zoo.evaluation.results.models import Record
from zoo.evaluation.results.statistics import bootstrap_sums, interval, wilson
from zoo.registry import METRICS

ACCURACIES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
# The first is of single continuations, the others of whole documents.
PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
NORMAL = NormalDist().inv_cdf(0.975)  # standard errors in half a 95 % interval
# How the harness makes one number of what the samples have: a mean, or a ratio of two sums.
FORMULAS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda rate: rate,
    lambda rate: np.exp(-rate),
    lambda rate: -rate / math.log(2),
)


def make_records(results: Mapping[str, Any], length: int, seed: int, seconds: float) -> list[Record]:
    """Returns a record of each metric that this project has too, for each task, group and filter.

    Args:
        results: results of ``lm_eval.simple_evaluate``, samples included.
        length: tokens of context.
        seed: seed of the bootstrap.
        seconds: time of all tasks together.
    """
    wall = seconds if len(results["results"]) == 1 else None
    numbers = [(name, key, value) for name, values in results["results"].items() for key, value in values.items()]
    records = [
        _record(results, name, key, float(value), length, seed, wall)
        for name, key, value in numbers
        if _usable(key, value)
    ]
    return [record for record in records if record is not None]


def _metric_name(metric: str) -> str:
    return "accuracy" if metric in ACCURACIES else metric


def _usable(key: str, value: Any) -> bool:
    return _metric_name(key.partition(",")[0]) in METRICS and isinstance(value, (int, float, np.number))


def _record(
    results: Mapping[str, Any], name: str, key: str, value: float, length: int, seed: int, wall: float | None
) -> Record | None:
    """The record of one number; None if it is made of nothing."""
    metric, _, kind = key.partition(",")
    entry, samples = results["results"][name], _samples(results, name, metric, kind)
    units = len(samples) or int(entry.get("sample_len") or 0)
    if not units:
        return None
    bounded = metric not in PERPLEXITIES and 0 <= value <= 1
    items, stderr = [sample[metric] for sample in samples], entry.get(f"{metric}_stderr,{kind}")
    return Record(
        task="lm_eval",
        variant=_variant(results, name, metric, kind),
        length=length,
        depth=None,
        metric=_metric_name(metric),
        value=value if math.isfinite(value) else None,
        ci95=_interval(value, items, stderr, bounded, seed),
        n=units,
        unit="doc" if metric in PERPLEXITIES[1:] else "sample",
        chance=_chance(results, name, metric, samples),
        higher_is_better=_higher_is_better(results, name, metric),
        wall_s=wall,
    )


def _samples(results: Mapping[str, Any], name: str, metric: str, kind: str) -> list[dict[str, Any]]:
    """Samples that the metric is made of, those of its tasks for a group."""
    inner = [task for task in results.get("group_subtasks", {}).get(name, []) if task != name]
    if inner:
        return [sample for task in inner for sample in _samples(results, task, metric, kind)]
    samples = results.get("samples", {}).get(name, [])
    return [sample for sample in samples if sample["filter"] == kind and metric in sample]


def _variant(results: Mapping[str, Any], name: str, metric: str, kind: str) -> str:
    shots = results.get("n-shot", {}).get(name) or 0
    parts = [name, f"{shots}-shot" if shots else "", "" if kind == "none" else kind]
    return "/".join(part for part in [*parts, metric if metric in ACCURACIES[1:] else ""] if part)


def _higher_is_better(results: Mapping[str, Any], name: str, metric: str) -> bool:
    told = results.get("higher_is_better", {}).get(name, {}).get(metric)
    return metric not in PERPLEXITIES if told is None else bool(told)


def _chance(results: Mapping[str, Any], name: str, metric: str, samples: list[dict[str, Any]]) -> float | None:
    """Accuracy of guessing among the choices."""
    if metric not in ACCURACIES or results.get("configs", {}).get(name, {}).get("output_type") != "multiple_choice":
        return None
    requests = 2 if any("acc_mutual_info" in sample for sample in samples) else 1  # each choice is also asked alone
    return float(np.mean([requests / len(sample["arguments"]) for sample in samples])) if samples else None


def _interval(value: float, items: list[Any], stderr: Any, bounded: bool, seed: int) -> tuple[float, float] | None:
    """Of a share Wilson's, of what samples add up to the bootstrap's, else from the standard error that is given."""
    if not math.isfinite(value):
        return None
    if (table := _table(items)) is not None:
        for formula in FORMULAS:
            found = float(formula(np.array(table[:, 0].sum() / table[:, 1].sum())))
            if not math.isclose(found, value, rel_tol=1e-9, abs_tol=1e-12):
                continue
            if formula is FORMULAS[0] and np.isin(items, (0, 1)).all():
                return wilson(int(np.sum(items)), len(items))
            return _bootstrap(table, formula, seed)
    if not (isinstance(stderr, (int, float, np.number)) and math.isfinite(stderr)):
        return None
    low, high = value - NORMAL * float(stderr), value + NORMAL * float(stderr)
    return (max(0.0, low), min(1.0, high)) if bounded else (low, high)


def _table(items: list[Any]) -> np.ndarray | None:
    """``(samples, 2)``: what is summed and what the sum is divided by; None for samples of another kind."""
    try:
        table = np.array(items, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    if table.ndim == 1:
        table = np.stack([table, np.ones_like(table)], axis=1)
    usable = table.ndim == 2 and table.shape[1] == 2 and len(table) > 0
    return table if usable and np.isfinite(table).all() and table[:, 1].sum() > 0 else None


def _bootstrap(table: np.ndarray, formula: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[float, float] | None:
    if len(table) < 2:
        return None
    sums = bootstrap_sums(table, seed)
    with np.errstate(all="ignore"):
        drawn = formula(sums[:, 0] / sums[:, 1])
    return interval(drawn, units=len(table)) if np.isfinite(drawn).all() else None


def make_samples(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns one line per sample and filter, as the harness logs it, with its task."""
    return [
        {"task": name, **as_json(sample)} for name, samples in results.get("samples", {}).items() for sample in samples
    ]


def as_json(value: Any) -> Any:
    """Converts a value to JSON types: numbers that are not finite become None, and other objects their text."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [as_json(item) for item in value]
    return getattr(value, "__name__", None) or str(value)
