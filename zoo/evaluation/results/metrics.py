"""Metrics by name: labels, directions and bounds.

A task from outside registers its own in the same way:

    from zoo.registry import METRICS
    from zoo.evaluation.results.metrics import Metric

    @METRICS.register("edits")
    class Edits(Metric):
        label, bounds, higher_is_better = "edits per answer", (0.0, math.inf), False
"""

from __future__ import annotations

import math
from typing import ClassVar

from zoo.registry import METRICS, nothing_imported


class Metric:
    """Properties of a metric; the defaults are those of a share, of which more is better.

    Attributes:
        label: name in reports.
        heading: name in a narrow column; empty for ``label``.
        bounds: lowest and highest possible value.
        higher_is_better: whether more is better.
        main: whether a comparison of runs shows it.
        reported: whether the report of a sweep lists it; not where another metric says the same.
    """

    label: ClassVar[str] = ""
    heading: ClassVar[str] = ""
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    higher_is_better: ClassVar[bool] = True
    main: ClassVar[bool] = False
    reported: ClassVar[bool] = True


class _Loss(Metric):
    bounds, higher_is_better = (0.0, math.inf), False


class _Perplexity(_Loss):
    bounds = (1.0, math.inf)


@METRICS.register("perplexity")
class Perplexity(_Perplexity):
    """Perplexity per token."""

    label = "perplexity"


@METRICS.register("word_perplexity")
class WordPerplexity(_Perplexity):
    """Perplexity per word."""

    label, reported = "word perplexity", False


@METRICS.register("byte_perplexity")
class BytePerplexity(_Perplexity):
    """Perplexity per byte."""

    label, reported = "byte perplexity", False


@METRICS.register("bits_per_byte")
class BitsPerByte(_Loss):
    """Loss in bits per byte of text."""

    label, main = "bits per byte", True


@METRICS.register("answer_nll")
class AnswerNll(_Loss):
    """Negative log-likelihood of an answer."""

    label, heading = "nats per answer", "NLL"


@METRICS.register("exact_match")
class ExactMatch(Metric):
    """Share of samples all of whose answers are right."""

    label, heading, main = "exact match", "EM", True


@METRICS.register("accuracy")
class Accuracy(Metric):
    """Share of answers that are right."""

    label, heading, main = "accuracy", "acc.", True


@METRICS.register("rank_accuracy")
class RankAccuracy(Metric):
    """Share of answers that are more likely than every other value compared."""

    label, heading, main = "best among the values", "rank", True


@METRICS.register("rank_accuracy_per_token")
class RankAccuracyPerToken(Metric):
    """Share of answers that are more likely per token than every other value compared."""

    label, heading = "best among the values per token", "per token"


@METRICS.register("f1")
class F1(Metric):
    """F1 of the words of a generated answer and of a right one."""

    label, heading = "f1", "F1"


@METRICS.register("contains")
class Contains(Metric):
    """Share of generated answers that contain a right one."""

    label = "contains"


class Unknown(Metric):
    """Metric of a package that is not imported, with an unknown range."""

    bounds = (-math.inf, math.inf)


def metric_named(name: str) -> type[Metric]:
    """Returns a metric by name; :class:`Unknown` for one that is not registered."""
    with nothing_imported():
        found: type[Metric] = METRICS.get(name) if name in METRICS else Unknown
    return found
