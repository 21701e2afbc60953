"""Reader of a sweep's folder: sweep.json, ledger.jsonl and the run folders under arms/."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from zoo.config import ConfigError, load_run_config, require_plugins
from zoo.evaluation.results.records import ResultError
from zoo.evaluation.tasks.result_kind import Written, read_evaluation
from zoo.files import read_metrics
from zoo.runs.run_folder import RESULTS
from zoo.sweeps.ledger import LedgerEntry, read_ledger

SCHEMA = "zoo-sweep/1"
FINISHED, FAILED, WAITING = "finished", "failed", "waiting"  # the last is for runs without a line in the ledger
REQUIRED = ("name", "arms", "seeds", "reference")


@dataclass(frozen=True)
class RunData:
    """One arm with one seed.

    Attributes:
        arm: name of the arm.
        seed: seed of the run.
        status: status in the ledger (started, trained, finished, failed), or ``waiting`` if it has no line there.
        reason: why it failed.
        folder: folder of the run, relative to the sweep's.
        overrides: overrides of the run.
        evaluations: evaluations by stem of the result file; empty unless finished, as are the fields below.
        metrics: metrics of the training.
        config: configuration of the run; None if it cannot be read.
        environment: versions and hardware.
        git: state of the source code.
        notes: notes on what is missing or damaged.
    """

    arm: str
    seed: int
    status: str = WAITING
    reason: str | None = None
    folder: str = ""
    overrides: tuple[str, ...] = ()
    evaluations: Mapping[str, Written] = field(default_factory=dict)
    metrics: tuple[dict[str, Any], ...] = ()
    config: DictConfig | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepData:
    """A sweep; ``arms`` are in the order of sweep.json, ``runs`` arm by arm and seed by seed."""

    name: str
    question: str
    command: str
    axis: str
    match: str | None
    reference: str
    tasks: tuple[str, ...]
    arms: tuple[str, ...]
    runs: tuple[RunData, ...]

    def finished(self, arm: str) -> dict[int, RunData]:
        """Returns the finished runs of an arm by seed."""
        return {run.seed: run for run in self.runs if run.arm == arm and run.status == FINISHED}


def read_sweep(folder: str | Path) -> SweepData:
    """Reads everything that a report needs; runs that are not finished have a status and a reason only.

    Raises:
        ConfigError: if the folder is not a sweep's, or if its sweep.json is damaged.
    """
    folder = Path(folder)
    facts = _read_facts(folder)
    keys = {run["key"] for run in facts.get("runs") or ()}  # an arm whose options were changed has another key
    entries = (entry for entry in read_ledger(folder).values() if not keys or entry.key in keys)
    latest = {(entry.arm, entry.seed): entry for entry in entries}
    overrides = {str(arm["name"]): tuple(map(str, arm.get("overrides") or ())) for arm in facts["arms"]}
    arms = dict.fromkeys([*overrides, *(arm for arm, _ in latest)])
    places = [(arm, seed) for arm in arms for seed in sorted({*facts["seeds"], *(s for a, s in latest if a == arm)})]
    axis = facts.get("axis") or {}
    command = facts.get("command") or ""
    return SweepData(
        name=str(facts["name"]),
        question=str(facts.get("question") or ""),
        command=command if isinstance(command, str) else " ".join(map(str, command)),
        axis=str(axis.get("label") or axis.get("key") or ""),
        match=facts.get("match"),
        reference=str(facts["reference"]),
        tasks=tuple(map(str, facts.get("tasks") or ())),
        arms=tuple(arms),
        runs=tuple(_read_run(folder, *place, latest.get(place), overrides.get(place[0], ())) for place in places),
    )


def _read_facts(folder: Path) -> dict[str, Any]:
    file = folder / "sweep.json"
    if not file.is_file():
        raise ConfigError(f"{folder} is not the folder of a sweep: it has no sweep.json; give the one of train.py -m.")
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{file} is damaged: {error}.") from error
    if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
        found = facts.get("schema") if isinstance(facts, dict) else type(facts).__name__
        raise ConfigError(f"{file} has schema {found!r}: expected {SCHEMA!r}.")
    if missing := [key for key in REQUIRED if key not in facts]:
        raise ConfigError(f"{file} has no {', '.join(missing)}: expected {', '.join(REQUIRED)}.")
    require_plugins(facts.get("plugins", ()))
    return facts


def _read_run(sweep: Path, arm: str, seed: int, entry: LedgerEntry | None, overrides: tuple[str, ...]) -> RunData:
    if entry is None:
        return RunData(arm, seed, overrides=overrides)
    run = RunData(arm, seed, entry.status, entry.reason, entry.folder, tuple(map(str, entry.overrides)))
    return _with_contents(run, sweep / entry.folder) if entry.status == FINISHED else run


def _with_contents(run: RunData, folder: Path) -> RunData:
    notes: list[str] = []
    evaluations = {}
    for file in sorted((folder / RESULTS).glob("*.json")):
        try:
            evaluations[file.stem] = read_evaluation(file)
        except (ResultError, OSError, TypeError) as error:
            notes.append(f"{file.relative_to(folder)} cannot be read: {_one_line(error, folder)}")
        else:
            if evaluations[file.stem].samples == []:
                notes.append(f"{file.relative_to(folder)} has no readable samples beside it")
    try:
        config = load_run_config(folder)
    except ConfigError as error:
        config = None
        notes.append(_one_line(error, folder))
    return replace(
        run,
        evaluations=evaluations,
        metrics=tuple(read_metrics(folder / "metrics.jsonl")),
        config=config,
        environment=_read_json(folder / "environment.json"),
        git=_read_json(folder / "git.json"),
        notes=tuple(notes),
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _one_line(error: Exception, folder: Path) -> str:
    """A message whose paths are relative to the run folder, so that a report says the same wherever a sweep lies."""
    return " ".join(str(error).replace(f"{folder}/", "").replace(str(folder), folder.name).split())


def list_notes(runs: Iterable[RunData]) -> list[str]:
    """Returns the notes of runs, each with its arm and seed."""
    return [f"{run.arm}, seed {run.seed}: {note}" for run in runs for note in run.notes]
