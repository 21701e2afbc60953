"""Samples of one cell of an experiment, kept on disk under what they are made from."""

from __future__ import annotations

import hashlib
import json
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.documents import DataError, expand
from zoo.data.recall.samples import Answer, Sample
from zoo.files import replace_file

# What NumPy raises on damaged files: of members, their compression, their headers, and what these ask for.
DAMAGED = (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, tokenize.TokenError)


@cache
def code_fingerprint() -> str:
    """SHA-256 over the code that makes samples, so that samples of older code are never read."""
    digest = hashlib.sha256()
    room = Path(__file__).resolve().parent
    for folder in (room, room.parent / "qa"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


@contextmanager
def sample_cache(cache_dir: str | Path) -> Iterator[Callable[[Any, Callable[[], list[Sample]]], list[Sample]]]:
    """Give a function of a recipe and of what makes its samples, which reads those that were made before.

    The recipe is JSON-like: everything that the samples depend on, beside the code. New samples are written at the end
    of the block, also when it is interrupted, but not when it ends in a DataError: a refusal leaves nothing behind.
    """
    made: dict[Path, list[Sample]] = {}

    def samples(recipe: Any, make: Callable[[], list[Sample]]) -> list[Sample]:
        key = hashlib.sha256(json.dumps([code_fingerprint(), recipe], sort_keys=True).encode()).hexdigest()[:32]
        file = expand(cache_dir) / "recall" / f"{key}.npz"
        found = _read(file)
        if found is None:
            found = made[file] = make()
        return found

    try:
        yield samples
    except DataError:
        made.clear()
        raise
    finally:
        for file, content in made.items():
            replace_file(file, partial(_write, samples=content))


def samples_digest(samples: list[Sample]) -> str:
    """SHA-256 over tokens and answers: equal for equal questions only."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(json.dumps(_describe(sample), sort_keys=True).encode())
        for ids in (sample.tokens, sample.targets):
            digest.update(np.ascontiguousarray(ids, dtype="<i8").tobytes())
    return digest.hexdigest()


def _describe(sample: Sample) -> dict[str, Any]:
    answers = [[a.start, a.stop, [list(o) for o in a.others], list(a.references)] for a in sample.answers]
    size = {"tokens": len(sample.tokens), "truncated": sample.truncated}
    asked = {"labels": 0 if sample.labels is None else len(sample.labels), "chance": sample.chance}
    return {"id": sample.id, "answers": answers, "depth": sample.depth, **size, **asked}


def _write(file: Path, samples: list[Sample]) -> None:
    about = json.dumps([_describe(sample) for sample in samples]).encode()
    none = np.zeros(0, np.int64)
    tokens = np.concatenate([none, *(sample.tokens for sample in samples)])
    labels = np.concatenate([none, *(sample.labels for sample in samples if sample.labels is not None)])
    with file.open("wb") as stream:
        np.savez_compressed(stream, tokens=tokens, labels=labels, about=np.frombuffer(about, dtype=np.uint8))


def _read(file: Path) -> list[Sample] | None:
    """Samples of a file; None if it does not exist or is damaged."""
    try:
        with np.load(file, allow_pickle=False) as content:
            about = json.loads(content["about"].tobytes())
            parts = [_split(content[name], [entry[name] for entry in about]) for name in ("tokens", "labels")]
        return [_restore(*one) for one in zip(about, *parts, strict=True)]
    except DAMAGED:
        return None


def _split(joined: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(joined.astype(np.int64), np.cumsum(sizes)[:-1]) if sizes else []


def _restore(entry: dict[str, Any], tokens: np.ndarray, labels: np.ndarray) -> Sample:
    answers = tuple(
        Answer(start, stop, tuple(tuple(other) for other in others), tuple(references))
        for start, stop, others, references in entry["answers"]
    )
    return Sample(
        entry["id"],
        tokens,
        answers,
        entry["depth"],
        entry["truncated"],
        labels if entry["labels"] else None,
        entry["chance"],
    )
