"""The result file of an evaluation: schema "zoo-eval/1", its writer, its reader and the check that both use.

    {"schema": "zoo-eval/1",
     "run": {id, time, git, cmd, host, torch, cuda, dtype, seed},
     "model": {name, config_sha, ckpt_sha, checkpoint, step, params, params_non_emb, layers, train_tokens, train_len,
               "state_bytes@L": {L: bytes}, "kv_bytes@L": {L: bytes}},
     "tokenizer": {name, sha, vocab, bytes_per_token},
     "protocol": {what was computed, so that two results can be told apart},
     "results": [records], "warnings": [sentences]}

Beside it, FILE.samples.jsonl.gz has one line per document or sample.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.files import replace_file

SCHEMA = "zoo-eval/1"
SECTIONS: dict[str, type] = {
    "run": dict,
    "model": dict,
    "tokenizer": dict,
    "protocol": dict,
    "results": list,
    "warnings": list,
}
METRICS = (
    "perplexity",
    "word_perplexity",
    "byte_perplexity",
    "bits_per_byte",
    "answer_nll",
    "exact_match",
    "rank_accuracy",
    "f1",
    "contains",
    "accuracy",
)
UNITS = ("doc", "sample")


class ResultError(ValueError):
    """A result file that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class Record:
    """One number of an evaluation.

    Attributes:
        task, variant: what was asked, and how. length: context in tokens. depth: of the answer in it, 0..1, or None.
        metric: one of METRICS. value: None where it is not a finite number. ci95: 95 % interval, or None.
        n: independent units. unit: what they are, ``doc`` or ``sample``. chance: value of guessing, or None.
        wall_s, tok_s: seconds taken, and tokens scored per second. peak_mem: bytes of GPU memory, None on a CPU.
    """

    task: str
    variant: str
    length: int
    depth: float | None
    metric: str
    value: float | None
    ci95: tuple[float, float] | None
    n: int
    unit: str
    chance: float | None
    higher_is_better: bool
    wall_s: float | None = None
    tok_s: float | None = None
    peak_mem: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, as in the file."""
        return asdict(self) | {"ci95": None if self.ci95 is None else list(self.ci95)}


def write_results(file: Path, content: dict[str, Any], samples: Iterable[dict[str, Any]] = ()) -> None:
    """Write a result file and its samples, each at once: a reader sees the old or the new file, never a part.

    Raises:
        ResultError: if the content does not follow the schema.
    """
    check_results(content, str(file))
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    lines = "".join(json.dumps(sample, ensure_ascii=False, allow_nan=False) + "\n" for sample in samples)
    if lines:
        packed = gzip.compress(lines.encode(), mtime=0)
        replace_file(samples_file(file), lambda unfinished: unfinished.write_bytes(packed))
    replace_file(file, lambda unfinished: unfinished.write_bytes(text.encode()))


def samples_file(file: Path) -> Path:
    """Where the samples of a result file lie."""
    return file.with_name(f"{file.stem}.samples.jsonl.gz")


def read_results(file: str | Path) -> dict[str, Any]:
    """Content of a result file.

    Raises:
        ResultError: if it is damaged or does not follow the schema. FileNotFoundError: if it does not exist.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultError(f"{file} is not a result file: {error}.") from error
    check_results(content, str(file))
    return content


def read_samples(file: str | Path) -> list[dict[str, Any]]:
    """Samples that lie beside a result file, an empty list if there are none."""
    path = samples_file(Path(file))
    if not path.is_file():
        return []
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def check_results(content: Any, where: str = "the result") -> None:
    """Raises ResultError, naming ``where`` and all faults, unless ``content`` follows the schema."""
    faults = list(_faults(content))
    if faults:
        raise ResultError(f"{where} does not follow {SCHEMA}: {'; '.join(faults)}.")


def _faults(content: Any) -> Iterable[str]:
    if not isinstance(content, dict):
        yield "expected an object"
        return
    if content.get("schema") != SCHEMA:
        yield f"schema is {content.get('schema')!r}"
        return
    for name, kind in SECTIONS.items():
        if not isinstance(content.get(name), kind):
            yield f"{name} is missing or not a {kind.__name__}"
            return
    for index, record in enumerate(content["results"]):
        for fault in _record_faults(record):
            yield f"results[{index}]: {fault}"


def _record_faults(record: Any) -> Iterable[str]:
    if not isinstance(record, dict):
        yield "expected an object"
        return
    required = [name for name in Record.__dataclass_fields__ if name not in ("wall_s", "tok_s", "peak_mem")]
    missing = [name for name in required if name not in record]
    if missing:
        yield f"no {', '.join(missing)}"
        return
    if record["metric"] not in METRICS:
        yield f"metric {record['metric']!r}"
    if record["unit"] not in UNITS:
        yield f"unit {record['unit']!r}"
    if not (record["value"] is None or _is_number(record["value"])):
        yield f"value {record['value']!r}"
    ci95 = record["ci95"]
    if ci95 is not None and not (isinstance(ci95, list) and len(ci95) == 2 and all(map(_is_number, ci95))):
        yield f"ci95 {ci95!r}"
    if not isinstance(record["n"], int) or record["n"] < 1:
        yield f"n {record['n']!r}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
