"""Measures that are compared: numbers of result files, and means of related ones."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from zoo.evaluation.compare import compare_runs, comparison_notes
from zoo.evaluation.display.recall_plots import RIGHT
from zoo.evaluation.results.metrics import metric_named
from zoo.evaluation.results.models import Record
from zoo.evaluation.tasks.base import TaskSuite
from zoo.evaluation.tasks.result_kind import Reported, Written
from zoo.registry import TASKS
from zoo.sweeps.page.read import RunData, SweepData
from zoo.sweeps.page.summary import NOT_TESTED, ArmDifference, Interval, compare


@dataclass(frozen=True)
class Measure:
    """One number that a run can have.

    Attributes:
        label: its name in tables.
        stem: stem of the result file.
        task: task of the record.
        variant: variant of the record.
        length: length of the record.
        metric: metric of the record; its depth is None, or the only one.
        higher_is_better: whether more is better.
        chance: value of guessing, or None.
        parts: measures whose mean it is; it then has no record of its own.
        headline: whether it is shown on top.
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
        """Lowest and highest possible value."""
        return self.parts[0].bounds if self.parts else metric_named(self.metric).bounds


@dataclass(frozen=True)
class Measures:
    """Measures of a sweep; ``loss`` and ``recall`` are the two to be read first, where they exist."""

    all: tuple[Measure, ...]
    loss: Measure | None
    recall: Measure | None

    @property
    def first(self) -> list[Measure]:
        """Loss and recall, if they exist."""
        return [measure for measure in (self.loss, self.recall) if measure is not None]

    @property
    def headline(self) -> list[Measure]:
        """Measures that are shown on top."""
        return [measure for measure in self.all if measure.headline]


def find_measures(sweep: SweepData) -> Measures:
    """Returns the measures of all finished runs, in the order of their files and records."""
    found: dict[tuple[str, str, int, str], tuple[Measure, str]] = {}
    for run in sweep.runs:
        for stem, written in run.evaluations.items():
            for record in written.records:
                if _is_pooled(record, written) and (shown := written.kind.reported(record, written)) is not None:
                    key = (stem, record.variant, record.length, record.metric)
                    found.setdefault(key, (_measure(stem, record, shown), shown.group))
    single = _distinct(measure for measure, _ in found.values())
    groups: dict[str, list[Measure]] = {}
    for measure, (_, group) in zip(single, found.values()):
        if group:
            groups.setdefault(group, []).append(measure)
    means = [mean for group in reversed(groups) for mean in _means(group, groups[group])]  # the first is read first
    loss = next((m for m in single if m.headline and m.metric == "bits_per_byte"), None)
    right = [m for m in means if m.metric == RIGHT]
    recall = right[-1] if right else next((m for m in single if m.headline and m.higher_is_better), None)
    headline = sorted((m for m in single if m.headline), key=lambda m: m.metric != "bits_per_byte")
    details = _details(RIGHT, groups.get(RIGHT, []))
    return Measures((*headline, *means, *details, *(m for m in single if not m.headline)), loss, recall)


def _distinct(measures: Iterable[Measure]) -> list[Measure]:
    """Labels that several files share get the file's name."""
    measures = list(measures)
    count = Counter(m.label for m in measures)
    return [replace(m, label=f"{m.label} ({m.stem})") if count[m.label] > 1 else m for m in measures]


def _is_pooled(record: Record, written: Written) -> bool:
    """Whether a record is over all depths, or the only one of its kind."""
    others = (r for r in written.records if r.depth is None)
    same = ((r.variant, r.length, r.metric) == (record.variant, record.length, record.metric) for r in others)
    return record.depth is None or not any(same)


def _measure(stem: str, record: Record, shown: Reported) -> Measure:
    return Measure(
        shown.label,
        stem,
        record.task,
        record.variant,
        record.length,
        record.metric,
        record.higher_is_better,
        record.chance,
        headline=shown.headline,
    )


def _means(name: str, parts: list[Measure]) -> list[Measure]:
    """Means of a group over variants and lengths of each task, and over tasks."""
    by_stem = [_mean(title, stem, name, of_file) for stem, title, of_file in _files(parts)]
    whole = [_mean(f"mean of {len(by_stem)} tasks", "", name, by_stem)] if len(by_stem) > 1 else []
    return by_stem + whole


def _files(parts: list[Measure]) -> Iterator[tuple[str, str, list[Measure]]]:
    """Each file's stem, what it is called (the task, where that has no other file), and its measures."""
    files = Counter(task for _, task in {(m.stem, m.task) for m in parts})
    for stem in dict.fromkeys(m.stem for m in parts):
        of_file = [m for m in parts if m.stem == stem]
        yield stem, of_file[0].task if files[of_file[0].task] == 1 else stem, of_file


def _details(name: str, parts: list[Measure]) -> Iterator[Measure]:
    """A group of each file at each of its lengths, and of each of its variants where it has several."""
    for stem, title, of_file in _files(parts):
        for length in dict.fromkeys(m.length for m in of_file if m.length):
            mean = _mean(f"{title}, {length:,} tokens", stem, name, [m for m in of_file if m.length == length])
            yield replace(mean, length=length, headline=False)
        variants = list(dict.fromkeys(m.variant for m in of_file))
        for variant in variants if len(variants) > 1 else []:
            mean = _mean(f"{title}, {variant}", stem, name, [m for m in of_file if m.variant == variant])
            yield replace(mean, variant=variant, headline=False)


def _mean(title: str, stem: str, name: str, parts: list[Measure]) -> Measure:
    chances = [m.chance for m in parts if m.chance is not None]
    chance = statistics.fmean(chances) if len(chances) == len(parts) else None
    task = parts[0].task if len({m.task for m in parts}) == 1 else ""
    label = f"{title}: {name}{f', chance {chance:.2g}' if chance else ''}"
    better = parts[0].higher_is_better
    return Measure(label, stem, task, "", 0, name, better, chance, tuple(parts), headline=True)


def value_of(measure: Measure, run: RunData) -> tuple[float, Interval | None] | None:
    """Returns the value of a run and its interval over samples; None if the run does not have it.

    A mean of several measures has no interval over samples, and requires all of its parts.
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
    found = [r for r in written.records if _key(r) == _key(measure)] if written else []
    return min(found, key=lambda r: r.depth is not None, default=None)


def _key(one: Measure | Record) -> tuple[str, str, int, str]:
    return one.task, one.variant, one.length, one.metric


def differences(reference: RunData, other: RunData, measures: Measures) -> dict[Measure, ArmDifference]:
    """Returns other minus reference for two runs of the same seed, over the same samples.

    Measures without samples of their own (perplexity per token) differ by their values. Where the texts, questions or
    tokenizers of the two are not the same, there is no difference.
    """
    found: dict[Measure, ArmDifference] = {}
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
            plain = ArmDifference(values[1][0] - values[0][0])
            if paired["value"] is not None:
                found[measure] = ArmDifference(paired["value"], paired["ci95"], paired["n"])
            elif same:
                found[measure] = plain
    for measure in sorted((m for m in measures.all if m.parts), key=_nesting):
        parts = [found[part] for part in measure.parts if part in found]
        if len(parts) == len(measure.parts):
            mean = ArmDifference(statistics.fmean(part.value for part in parts))
            found[measure] = parts[0] if len(parts) == 1 else mean
    return found


def pair_verdict(first: Mapping[int, RunData], second: Mapping[int, RunData], measure: Measure) -> str | None:
    """Compares one arm's runs with another's in a measure, over the seeds that both have; None without any.

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
        found = [ArmDifference(a[0] - b[0]) for a, b in values if a is not None and b is not None]
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
    return replace(written, results=written.results.model_copy(update={"results": wanted}))


def missing(sweep: SweepData) -> list[str]:
    """Lists evaluations that other runs have, or that the sweep asks for, and that a finished run lacks."""
    finished = [run for run in sweep.runs if run.status == "finished"]
    stems: Mapping[str, None] = dict.fromkeys(stem for run in finished for stem in run.evaluations)
    notes = []
    for run in finished:
        lacks = [stem for stem in stems if stem not in run.evaluations]
        if lacks:
            notes.append(f"{run.arm}, seed {run.seed}: no result of {', '.join(lacks)}")
    names = dict.fromkeys(task.split()[0] for task in sweep.tasks if task.strip())  # options may follow
    asked = [name for name in names if finished and not _is_suite(name)]
    absent = [task for task in asked if not any(stem == task or stem.startswith(f"{task}-") for stem in stems)]
    return notes + [f"{task}: no finished run has a result of it" for task in absent]


def _is_suite(name: str) -> bool:
    return name in TASKS and issubclass(TASKS.get(name), TaskSuite)
