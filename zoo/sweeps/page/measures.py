"""What is compared: numbers of result files, and means of those that belong together."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from zoo.evaluation.compare import compare_runs, comparison_notes
from zoo.evaluation.evaluate import Written
from zoo.evaluation.results.records import Record
from zoo.evaluation.tasks.cell_task import NO_CONTEXT, ZERO_LENGTH
from zoo.registry import TASKS
from zoo.sweeps.page.read import RunData, SweepData
from zoo.sweeps.page.summary import NOT_TESTED, Difference, Interval, compare

PERPLEXITY = ("perplexity", "perplexity_context", "perplexity_position")
PARTS = ("recall", "other")  # of the tokens of the task perplexity
RIGHT, RANK = "answers right", "best among the values"
NAMES = {
    "bits_per_byte": "bits per byte",
    "answer_nll": "nats per answer",
    "rank_accuracy": RANK,
    "rank_accuracy_per_token": f"{RANK} per token",
}
PERPLEXITIES = ("perplexity", "word_perplexity", "byte_perplexity")  # at least 1
POSITIVE = ("bits_per_byte", "answer_nll")  # all other metrics are shares of answers


@dataclass(frozen=True)
class Measure:
    """One number that a run can have.

    Attributes:
        label: what a table calls it. stem: of the result file.
        task, variant, length, metric: of the record; its depth is None, or the only one.
        parts: measures whose mean it is; it then has no record of its own.
        headline: whether it belongs on top.
    """

    label: str
    stem: str
    task: str
    variant: str
    length: int
    metric: str
    higher_is_better: bool
    chance: float | None = None
    parts: tuple[Measure, ...] = ()
    headline: bool = False

    @property
    def bounds(self) -> Interval:
        """What its values cannot leave."""
        if self.metric in PERPLEXITIES:
            return 1.0, math.inf
        return (0.0, math.inf) if self.metric in POSITIVE else (0.0, 1.0)


@dataclass(frozen=True)
class Measures:
    """All of a sweep; ``loss`` and ``recall`` are the two to be read first, where there are any."""

    all: tuple[Measure, ...]
    loss: Measure | None
    recall: Measure | None

    @property
    def first(self) -> list[Measure]:
        """Loss and recall, those that there are."""
        return [measure for measure in (self.loss, self.recall) if measure is not None]

    @property
    def headline(self) -> list[Measure]:
        """Those on top."""
        return [measure for measure in self.all if measure.headline]


def find_measures(sweep: SweepData) -> Measures:
    """Measures of all finished runs, in the order of their files and records."""
    found: dict[tuple[str, str, int, str], Measure] = {}
    for run in sweep.runs:
        for stem, written in run.evaluations.items():
            for record in written.outcome.records:
                if _is_shown(record, written):
                    key = (stem, record.variant, record.length, record.metric)
                    found.setdefault(key, _measure(stem, record, written))
    single = _distinct(found.values())
    answers = [m for m in single if m.task not in PERPLEXITY and "/" not in m.variant]  # not once more in another way
    means = _means(answers)
    loss = next((m for m in single if m.headline and m.metric == "bits_per_byte"), None)
    right = [m for m in means if m.metric == RIGHT]
    recall = right[-1] if right else next((m for m in single if m.headline and m.task not in PERPLEXITY), None)
    headline = sorted((m for m in single if m.headline), key=lambda m: m.metric != "bits_per_byte")
    return Measures((*headline, *means, *_groups(answers), *(m for m in single if not m.headline)), loss, recall)


def _distinct(measures: Iterable[Measure]) -> list[Measure]:
    """Labels that several files share get the file's name."""
    measures = list(measures)
    count = Counter(m.label for m in measures)
    return [replace(m, label=f"{m.label} ({m.stem})") if count[m.label] > 1 else m for m in measures]


def _is_shown(record: Record, written: Written) -> bool:
    """Not questions without their context, and of depths only what is pooled over them."""
    if record.variant.endswith((NO_CONTEXT, ZERO_LENGTH)) or record.metric in ("word_perplexity", "byte_perplexity"):
        return False
    others = (r for r in written.outcome.records if r.depth is None)
    same = ((r.variant, r.length, r.metric) == (record.variant, record.length, record.metric) for r in others)
    return record.depth is None or not any(same)


def _measure(stem: str, record: Record, written: Written) -> Measure:
    whole = record.task == "perplexity" and record.variant not in PARTS and not record.variant.startswith("recall-")
    part = record.task == "perplexity" and record.variant in PARTS and record.metric == "bits_per_byte"
    metric = NAMES.get(record.metric, record.metric.replace("_", " "))
    if whole:
        label = f"{metric}, {written.outcome.protocol.get('data', stem)}"
    elif part:
        label = f"{metric}, {'tokens that repeat a bigram' if record.variant == 'recall' else 'other tokens'}"
    else:
        length = f", {record.length:,} tokens" if record.length else ""
        label = f"{record.task}, {record.variant}{length}: {metric}"
    return Measure(
        label,
        stem,
        record.task,
        record.variant,
        record.length,
        record.metric,
        record.higher_is_better,
        record.chance,
        headline=whole or part,
    )


def _means(recall: list[Measure]) -> list[Measure]:
    """Means over variants and lengths of each task, and over tasks: answers right, and rank where it was taken."""
    several = {(m.stem, m.variant) for m in recall if m.metric == "accuracy"}
    files = Counter(task for _, task in {(m.stem, m.task) for m in recall})
    found: list[Measure] = []
    for name in (RANK, RIGHT):  # the last one is the mean of all answers
        parts = [m for m in recall if _name(m, several) == name]
        stems = list(dict.fromkeys(m.stem for m in parts))
        groups = [(stem, [m for m in parts if m.stem == stem]) for stem in stems]
        by_stem = [_mean(ps[0].task if files[ps[0].task] == 1 else stem, stem, name, ps) for stem, ps in groups]
        found += by_stem
        if len(by_stem) > 1:
            found.append(_mean(f"mean of {len(by_stem)} recall tasks", "", name, by_stem))
    return found


def _groups(recall: list[Measure]) -> Iterator[Measure]:
    """Answers right of each file at each of its lengths, and of each of its variants where it has several."""
    several = {(m.stem, m.variant) for m in recall if m.metric == "accuracy"}
    right = [m for m in recall if _name(m, several) == RIGHT]
    files = Counter(task for _, task in {(m.stem, m.task) for m in right})
    for stem in dict.fromkeys(m.stem for m in right):
        of_file = [m for m in right if m.stem == stem]
        title = of_file[0].task if files[of_file[0].task] == 1 else stem
        for length in dict.fromkeys(m.length for m in of_file if m.length):
            mean = _mean(f"{title}, {length:,} tokens", stem, RIGHT, [m for m in of_file if m.length == length])
            yield replace(mean, length=length, headline=False)
        variants = list(dict.fromkeys(m.variant for m in of_file))
        for variant in variants if len(variants) > 1 else []:
            mean = _mean(f"{title}, {variant}", stem, RIGHT, [m for m in of_file if m.variant == variant])
            yield replace(mean, variant=variant, headline=False)


def _name(measure: Measure, several: set[tuple[str, str]]) -> str | None:
    if measure.metric == "rank_accuracy":
        return RANK
    right = "accuracy" if (measure.stem, measure.variant) in several else "exact_match"
    return RIGHT if measure.metric == right else None


def _mean(title: str, stem: str, name: str, parts: list[Measure]) -> Measure:
    chances = [m.chance for m in parts if m.chance is not None]
    chance = statistics.fmean(chances) if len(chances) == len(parts) else None
    task = parts[0].task if len({m.task for m in parts}) == 1 else ""
    label = f"{title}: {name}{f', chance {chance:.2g}' if chance else ''}"
    return Measure(label, stem, task, "", 0, name, True, chance, tuple(parts), headline=True)


def value_of(measure: Measure, run: RunData) -> tuple[float, Interval | None] | None:
    """Value of a run and its interval over samples; None if the run does not have it.

    A mean of several has no interval over samples, and needs all of its parts.
    """
    if measure.parts:
        found = [value_of(part, run) for part in measure.parts]
        values = [one[0] for one in found if one is not None]
        interval = found[0][1] if len(found) == 1 and found[0] is not None else None
        return (statistics.fmean(values), interval) if len(values) == len(found) else None
    record = _record(measure, run)
    if record is None or record.value is None:
        return None
    return record.value, None if record.ci95 is None else (record.ci95[0], record.ci95[1])


def _record(measure: Measure, run: RunData) -> Record | None:
    written = run.evaluations.get(measure.stem)
    found = [r for r in written.outcome.records if _key(r) == _key(measure)] if written else []
    return min(found, key=lambda r: r.depth is not None, default=None)


def _key(one: Measure | Record) -> tuple[str, str, int, str]:
    return one.task, one.variant, one.length, one.metric


def differences(reference: RunData, other: RunData, measures: Measures) -> dict[Measure, Difference]:
    """Other minus reference, two runs of the same seed, over the same samples.

    Measures without samples of their own (perplexity per token) differ by their values. Where the texts, questions or
    tokenizers of the two are not the same, there is no difference.
    """
    found: dict[Measure, Difference] = {}
    for stem in (stem for stem in reference.evaluations if stem in other.evaluations):
        mine = [m for m in measures.all if m.stem == stem and not m.parts]
        first, second = (_only(run, stem, mine) for run in (reference, other))
        pair = [(reference.arm, [first]), (other.arm, [second])]
        same = not comparison_notes(pair)
        rows = {(r["task"], r["variant"], r["length"], r["metric"]): r for r in compare_runs(pair)}
        for measure in mine:
            values = value_of(measure, reference), value_of(measure, other)
            if values[0] is None or values[1] is None or (row := rows.get(_key(measure))) is None:
                continue
            paired = row["differences"][0]
            plain = Difference(values[1][0] - values[0][0])
            if paired["value"] is not None:
                found[measure] = Difference(paired["value"], paired["ci95"], paired["n"])
            elif same:
                found[measure] = plain
    for measure in sorted((m for m in measures.all if m.parts), key=_nesting):
        parts = [found[part] for part in measure.parts if part in found]
        if len(parts) == len(measure.parts):
            mean = Difference(statistics.fmean(part.value for part in parts))
            found[measure] = parts[0] if len(parts) == 1 else mean
    return found


def pair_verdict(first: Mapping[int, RunData], second: Mapping[int, RunData], measure: Measure) -> str | None:
    """How one arm's runs by seed stand to another's in a measure, over the seeds that both have; None without any.

    With two seeds or more, values are paired by seed; with one, samples are.
    """
    shared = [seed for seed in first if seed in second]
    if not shared:
        return None
    singles = [part for part in _with_parts(measure) if not part.parts]
    start = first[shared[0]], second[shared[0]]
    if len(shared) == 1:
        alone = differences(start[1], start[0], Measures(tuple(_with_parts(measure)), None, None))
        found = [alone[measure]] if measure in alone else []
    else:
        stems = dict.fromkeys(part.stem for part in singles)
        if any(part.stem not in run.evaluations for part in singles for run in start):
            return NOT_TESTED
        asked = [(run.arm, [_only(run, s, [p for p in singles if p.stem == s]) for s in stems]) for run in start]
        if comparison_notes(asked):
            return NOT_TESTED
        values = [(value_of(measure, first[seed]), value_of(measure, second[seed])) for seed in shared]
        found = [Difference(a[0] - b[0]) for a, b in values if a is not None and b is not None]
    compared = compare(found, measure.higher_is_better, measure.bounds)
    return NOT_TESTED if compared is None else compared.verdict


def _with_parts(measure: Measure) -> Iterator[Measure]:
    yield measure
    for part in measure.parts:
        yield from _with_parts(part)


def _nesting(measure: Measure) -> int:
    return 1 + max(map(_nesting, measure.parts)) if measure.parts else 0


def _only(run: RunData, stem: str, measures: list[Measure]) -> Written:
    """An evaluation without the records that are not compared."""
    written = run.evaluations[stem]
    wanted = [record for m in measures if (record := _record(m, run)) is not None]
    return replace(written, outcome=replace(written.outcome, records=wanted))


def missing(sweep: SweepData) -> list[str]:
    """Evaluations that other runs have, or that the sweep asks for, and a finished run lacks."""
    finished = [run for run in sweep.runs if run.status == "finished"]
    stems: Mapping[str, None] = dict.fromkeys(stem for run in finished for stem in run.evaluations)
    notes = []
    for run in finished:
        lacks = [stem for stem in stems if stem not in run.evaluations]
        if lacks:
            notes.append(f"{run.arm}, seed {run.seed}: no result of {', '.join(lacks)}")
    names = dict.fromkeys(task.split()[0] for task in sweep.tasks if task.strip())  # options may follow
    asked = [name for name in names if finished and not (name in TASKS and hasattr(TASKS.get(name), "tasks"))]
    absent = [task for task in asked if not any(stem == task or stem.startswith(f"{task}-") for stem in stems)]
    return notes + [f"{task}: no finished run has a result of it" for task in absent]
