"""Question answering from the Hub by name, or from local folders of the same layout."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zoo.data.documents import CACHE, DataError, Named, expand
from zoo.data.qa import adapters
from zoo.data.qa.qa_set import QASet
from zoo.data.qa.records import QARecord, check_ids
from zoo.data.qa.squad import read_rows, read_squad
from zoo.data.sources.hub import HubSource
from zoo.data.sources.plain_names import plain_cache, plain_folder
from zoo.data.sources.readers import COMPRESSIONS, content_stem

FORMATS = {"parquet": "parquet", "jsonl": "json", "json": "json"}
SUFFIXES = [f".{suffix}" for suffix in FORMATS] + [
    f".{json}{end}" for json in ("jsonl", "json") for end in COMPRESSIONS
]
LABELS = 32
STREAMED = 512  # records of a data set that is streamed, unless more are asked for


@dataclass(frozen=True)
class Preset:
    """A data set of the Hub, and how its rows become records.

    Attributes:
        id: id on the Hub.
        split: split to evaluate on.
        adapter: converts a row to a record.
        license: license of the data, as far as its authors state one.
        configs: configurations that hold questions, the plain one first; empty if there is only one.
        revision: revision on the Hub; None for the latest.
        fill: add distractors, see :func:`zoo.data.qa.compose_qa.compose_record`; long documents get none.
        truncate: what happens to a required text that is too long, see :func:`zoo.data.qa.compose_qa.compose_record`.
        labels: the answers are few words, which every question then offers as options.
        streaming: rows are large, so that only the first ones are fetched, as many as are asked for or ``STREAMED``.
    """

    id: str
    split: str
    adapter: adapters.Adapter
    license: str
    configs: tuple[str, ...] = ()
    revision: str | None = None
    fill: bool = True
    truncate: str = "error"
    labels: bool = False
    streaming: bool = False


def _long(id: str, split: str, adapter: adapters.Adapter, license: str, **options: Any) -> Preset:
    return Preset(id, split, adapter, license, fill=False, truncate="middle", **options)


PRESETS: dict[str, Preset] = {
    "squad": Preset("rajpurkar/squad", "validation", adapters.squad, "CC-BY-SA-4.0"),
    "squad_v2": Preset("rajpurkar/squad_v2", "validation", adapters.squad, "CC-BY-SA-4.0"),
    "hotpotqa": Preset(
        "hotpotqa/hotpot_qa", "validation", adapters.hotpotqa, "CC-BY-SA-4.0", configs=("distractor", "fullwiki")
    ),
    "narrativeqa": Preset("deepmind/narrativeqa", "validation", adapters.narrativeqa, "Apache-2.0", streaming=True),
    "narrativeqa_full": _long(
        "deepmind/narrativeqa", "validation", adapters.narrativeqa_full, "Apache-2.0", streaming=True
    ),
    "quality": _long("emozilla/quality", "validation", adapters.quality, "CC-BY-4.0"),
    "longbench": _long(
        "Xnhyacinth/LongBench",
        "test",
        adapters.longbench,
        "MIT; the texts have their own licenses",
        configs=("multifieldqa_en", "narrativeqa", "qasper", "hotpotqa", "2wikimqa", "musique"),
    ),
    "babilong": _long(
        "RMT-team/babilong",
        "qa1",
        adapters.babilong,
        "Apache-2.0; bAbI BSD, PG-19 public domain",
        configs=("1k", "0k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M"),
        labels=True,
    ),
    "swde": _long("hazyresearch/based-swde-v2", "validation", adapters.completion, "not stated"),
    "fda": _long("hazyresearch/based-fda", "validation", adapters.completion, "not stated"),
    "squad_completion": _long("hazyresearch/based-squad", "validation", adapters.completion, "CC-BY-SA-4.0"),
}


def load_preset(
    name: str,
    path: str | Path | None = None,
    config: str | None = None,
    split: str | None = None,
    max_records: int | None = None,
    revision: str | None = None,
    cache_dir: str = CACHE,
) -> list[QARecord]:
    """Loads the records of a data set in its order; rows whose question its text does not answer are left out.

    Args:
        name: name of the preset.
        path: local folder of the same layout, in place of the Hub.
        config: configuration in place of the preset's own.
        split: split in place of the preset's own.
        max_records: use only so many records, the first ones; they are then all that distractors come from. None for
            all, or for the first ``STREAMED`` of a preset that is streamed.
        revision: revision of the Hub's repository.
        cache_dir: folder of downloads.

    Raises:
        DataError: on an unknown preset, config or split, a row of another layout (named), or data that cannot be
            reached.
    """
    return _load(name, path, config, split, max_records, revision, cache_dir)[0]


def _load(
    name: str,
    path: str | Path | None,
    config: str | None,
    split: str | None,
    max_records: int | None,
    revision: str | None,
    cache_dir: str,
) -> tuple[list[QARecord], list[str]]:
    """See :func:`load_preset`; also notes on what was left out."""
    preset = _preset(name)
    _check_most(max_records)
    most = max_records or (STREAMED if preset.streaming else None)
    if preset.configs and config is not None and config not in preset.configs:
        raise DataError(f"task.config={config!r}: the preset {name} has {', '.join(preset.configs)}.")
    config = config or next(iter(preset.configs), None)
    split = split or preset.split
    records: list[QARecord] = []
    texts: dict[str, str] = {}  # a book is kept once, however many questions it has
    left_out: Counter[str] = Counter()
    for number, row in enumerate(_rows(preset, path, config, split, revision or preset.revision, cache_dir)):
        try:
            record = preset.adapter(row, f"{path or preset.id} split {split} row {number}", f"{split}-{number}")
        except adapters.UnusableRow as reason:
            left_out[str(reason)] += 1
            continue
        records.append(replace(record, paragraphs=tuple(texts.setdefault(t, t) for t in record.paragraphs)))
        if len(records) == most:
            break
    notes = [f"Rows {reason}, left out: {count:,}." for reason, count in left_out.items()]
    if not records:
        told = " ".join([f"{path or preset.id} has no question with an answer in split {split!r}.", *notes])
        raise DataError(f"{told} Choose another task.split.")
    if max_records is None and len(records) == most:
        notes.append(f"Only the first {most} questions of {name} were read: set task.max_records for more.")
    check_ids(records)
    return _with_labels(records) if preset.labels else records, notes


def _check_most(max_records: int | None) -> None:
    if max_records is not None and (not isinstance(max_records, int) or max_records < 1):
        raise DataError(f"task.max_records={max_records}: expected a whole number >= 1, or null.")


def load_set(
    path: str | Path | None = None,
    preset: str | None = None,
    config: str | None = None,
    split: str | None = None,
    max_records: int | None = None,
    revision: str | None = None,
    cache_dir: str = CACHE,
) -> QASet:
    """Loads the records of ``task=qa``: a preset, or without one a SQuAD-format file.

    A folder in the layout of the Hub's SQuAD is read, too.

    Raises:
        DataError: as in :func:`load_preset` and :func:`zoo.data.qa.squad.read_squad`.
    """
    _check_most(max_records)
    if preset is None and path is None:
        raise DataError(
            "task=qa has nothing to ask: set task.path to a SQuAD-format json or jsonl file, or task.preset to one of "
            f"{', '.join(PRESETS)}."
        )
    if preset in (None, "squad", "squad_v2") and path is not None and not expand(path).is_dir():
        return QASet(content_stem(expand(path)), tuple(read_squad(path)[:max_records]))
    name = preset or "squad"
    records, notes = _load(name, path, config, split, max_records, revision, cache_dir)
    parts = [name, config or "", split if split != _preset(name).split else ""]
    title = "-".join(part for part in parts if part)
    return QASet(title, tuple(records), PRESETS[name].fill, PRESETS[name].truncate, notes=tuple(notes))


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise DataError(f"task.preset={name!r}: expected one of {', '.join(PRESETS)}.")
    return PRESETS[name]


def _with_labels(records: list[QARecord]) -> list[QARecord]:
    labels = tuple(sorted({record.answers[0] for record in records}))
    if not 2 <= len(labels) <= LABELS:
        return records
    return [replace(record, kind="choice", options=labels) for record in records]


def _rows(
    preset: Preset, path: str | Path | None, config: str | None, split: str, revision: str | None, cache_dir: str
) -> Iterator[Mapping[str, Any]]:
    files = _files(expand(path), config, split) if path is not None else []
    where = f"task.path={path}" if path is not None else preset.id
    try:
        if files:
            yield from _file_rows(expand(str(path)), files, cache_dir)
        else:
            yield from _hub_rows(preset, path, config, split, revision, cache_dir)
    except DataError as error:
        error.call("task.")
        raise
    except Exception as error:  # datasets raises anything from OSError to its own kinds, streams while they are read
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{where} could not be read ({reason}): check the network and the files, or point task.path at a local "
            f"folder with the layout of {preset.id}"
        ) from error


def _hub_rows(
    preset: Preset, path: str | Path | None, config: str | None, split: str, revision: str | None, cache_dir: str
) -> Iterator[Mapping[str, Any]]:
    folder = None if path is None else str(path)
    source = HubSource(preset.id, config, revision, path=folder, streaming=preset.streaming, cache_dir=cache_dir)
    splits = source.splits_by_name
    if split not in splits:
        raise DataError(
            *source.where,
            f" has no split {split!r}; it has {', '.join(splits)}: ",
            Named("split", "choose one with {}=..."),
        )
    yield from splits[split]


def _file_rows(folder: Path, files: list[Path], cache_dir: str) -> Iterator[Mapping[str, Any]]:
    from datasets import load_dataset

    if files[0].suffix in COMPRESSIONS:
        yield from (row for file in files for _, _, row in read_rows(file))
        return
    builder = FORMATS[files[0].suffix[1:]]
    place = plain_folder(folder, expand(cache_dir))
    names = [glob.escape(str(place / file.relative_to(folder.resolve()))) for file in files]
    cache = plain_cache(expand(cache_dir) / "datasets")
    yield from load_dataset(builder, data_files=names, split="train", cache_dir=str(cache))


def _files(folder: Path, config: str | None, split: str) -> list[Path]:
    """Files that a folder without a README names after config and split; none for ``datasets`` to look itself."""
    if (folder / "README.md").is_file() or not folder.is_dir():
        return []
    config, split = (None if config is None else glob.escape(config)), glob.escape(split)
    stems = [split, f"data/{split}"]
    if config is not None:
        stems = [f"{config}/{split}", f"{split}/{config}", f"data/{split}/{config}", config, f"data/{config}", *stems]
    for stem in stems:
        for suffix in SUFFIXES:
            patterns = [f"{stem}{suffix}", f"{stem}-*-of-*{suffix}"]
            if stem.endswith(split):
                patterns.append(f"{stem}/*{suffix}")  # as the Hub's own conversion to parquet lays them out
            if found := sorted(file for pattern in patterns for file in folder.resolve().glob(pattern)):
                return found
    return []
