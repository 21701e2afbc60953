"""The result file of an evaluation: schema "zoo-eval/1", its writer, its reader and the check that both use.

The schema is zoo-eval-1.schema.json beside this file. FILE.samples.jsonl.gz has one line per document or sample.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from zoo.files import replace_file
from zoo.paths import program_command, shown
from zoo.runs.run_folder import RESULTS

SCHEMA = "zoo-eval/1"
SCHEMA_FILE = Path(__file__).with_name("zoo-eval-1.schema.json")
METRICS: tuple[str, ...] = tuple(
    json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))["$defs"]["record"]["properties"]["metric"]["enum"]
)
FAULTS = 5  # that a message lists


class ResultError(ValueError):
    """A result file that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class Record:
    """One number of an evaluation.

    Attributes:
        task, variant: what was asked, and how. length: context in tokens. depth: of the answer in it, 0..1, or None.
        metric: one of the schema's. value: None where it is not a finite number. ci95: 95 % interval, or None.
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

    Numbers of samples that are not finite become null.

    Raises:
        ResultError: if the content does not follow the schema.
    """
    content = _text(content)
    check_results(content, str(file))
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    lines = "".join(
        json.dumps(_text(_finite(sample)), ensure_ascii=False, allow_nan=False) + "\n" for sample in samples
    )
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


def read_held_out(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Result of ``task=perplexity`` as it is by default, and its record of bits per byte of all text.

    Raises:
        ResultError: if the run has not been evaluated so, or the number is not finite.
    """
    files = sorted((run / RESULTS).glob("perplexity-*.json"), key=lambda file: (len(file.name), file.name))
    for file in files:  # that of the last checkpoint has the shorter name
        result = read_results(file)
        record = next((r for r in result["results"] if r["metric"] == "bits_per_byte"), None)
        if record is not None and _is_held_out(result):
            if record["value"] is None:
                raise ResultError(f"{file} has no finite bits per byte: leave {run} out, or train it again.")
            return result, record
    raise ResultError(f"{run} has not been evaluated: {program_command('eval.py', f'run={run}', 'task=perplexity')}")


def _is_held_out(result: dict[str, Any]) -> bool:
    """Whether a result is of the whole test split of the run's own data, in windows of the trained length."""
    protocol = result["protocol"]
    own = protocol.get("path") is None and protocol.get("split") == "test" and protocol.get("complete") is True
    windows = {protocol.get("window"), protocol.get("stride")}
    return own and not protocol.get("stateful") and windows == {result["model"].get("train_len")}


def read_samples(file: str | Path) -> list[dict[str, Any]]:
    """Samples that lie beside a result file, an empty list if there are none."""
    path = samples_file(Path(file))
    if not path.is_file():
        return []
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def check_results(content: Any, where: str = "the result") -> None:
    """Raises ResultError, naming ``where`` and the first faults, unless ``content`` follows the schema."""
    faults = [_fault(error) for error in _validator().iter_errors(content)]
    faults += [f"not a finite number at {place}" for place in _infinite(content, "$")]
    if faults:
        more = f"; and {len(faults) - FAULTS} more" if len(faults) > FAULTS else ""
        raise ResultError(f"{where} does not follow {SCHEMA}: {'; '.join(faults[:FAULTS])}{more}.")


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))


def _fault(error: Any) -> str:
    return f"{error.json_path}: {error.message[:200]}"


def _finite(node: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not have."""
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    return [_finite(value) for value in node] if isinstance(node, (list, tuple)) else node


def _text(node: Any) -> Any:
    """The same with names of files that are not UTF-8 as text that is."""
    if isinstance(node, str):
        return shown(node)
    if isinstance(node, dict):
        return {_text(key): _text(value) for key, value in node.items()}
    return [_text(value) for value in node] if isinstance(node, (list, tuple)) else node


def _infinite(node: Any, place: str) -> Iterable[str]:
    """Places of NaN and infinity."""
    if isinstance(node, float) and not math.isfinite(node):
        yield place
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _infinite(value, f"{place}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _infinite(value, f"{place}[{index}]")
