"""Result files: writer, reader and validation; see :mod:`zoo.evaluation.results.models`.

FILE.samples.jsonl.gz has one line per document or sample.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from zoo.evaluation.results.models import SCHEMA, Record, Results
from zoo.files import replace_file
from zoo.paths import program_command, shown
from zoo.runs.run_folder import RESULTS

FAULTS = 5  # that a message lists


class ResultError(ValueError):
    """Raised for a result file that cannot be read; the message says what is wrong with it."""


def make_results(content: dict[str, Any], where: str = "the result") -> Results:
    """Validates the content of a result file.

    Args:
        content: plain values by their names in the file.
        where: name of the content in messages.

    Raises:
        ResultError: naming the first faults, if it does not follow the schema.
    """
    try:
        found = Results.model_validate(_text(content))
        json.dumps(found.protocol, allow_nan=False)
    except ValidationError as error:
        faults = [_fault(one) for one in error.errors(include_url=False)]
    except ValueError as error:
        faults = [f"$.protocol: {error}"]
    else:
        return found
    more = f"; and {len(faults) - FAULTS} more" if len(faults) > FAULTS else ""
    raise ResultError(f"{where} does not follow {SCHEMA}: {'; '.join(faults[:FAULTS])}{more}.")


def _fault(error: Any) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    value = "" if error["type"] == "missing" else f" ({str(error['input'])[:80]})"
    return f"${place}: {error['msg']}{value}"


def write_results(file: Path, results: Results, samples: Iterable[dict[str, Any]] = ()) -> None:
    """Writes a result file and its samples, each atomically.

    Numbers of samples that are not finite become null.
    """
    text = json.dumps(results.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    lines = "".join(
        json.dumps(_text(_finite(sample)), ensure_ascii=False, allow_nan=False) + "\n" for sample in samples
    )
    if lines:
        packed = gzip.compress(lines.encode(), mtime=0)
        replace_file(samples_file(file), lambda unfinished: unfinished.write_bytes(packed))
    replace_file(file, lambda unfinished: unfinished.write_bytes(text.encode()))


def samples_file(file: Path) -> Path:
    """Returns the file of the samples that belong to a result file."""
    return file.with_name(f"{file.stem}.samples.jsonl.gz")


def read_results(file: str | Path) -> Results:
    """Reads a result file.

    Raises:
        ResultError: if it is damaged or does not follow the schema.
        FileNotFoundError: if it does not exist.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"), parse_constant=_refuse)
    except ValueError as error:
        raise ResultError(f"{file} is not a result file: {error}.") from error
    return make_results(content, str(file))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no finite number")


def read_held_out(run: Path) -> tuple[Results, Record]:
    """Reads the result of ``task=perplexity`` with default options, and its record of bits per byte of all text.

    Raises:
        ResultError: if the run has no such result, or the number is not finite.
    """
    files = sorted((run / RESULTS).glob("perplexity-*.json"), key=lambda file: (len(file.name), file.name))
    for file in files:  # that of the last checkpoint has the shorter name
        found = read_results(file)
        record = next((r for r in found.results if r.metric == "bits_per_byte"), None)
        if record is not None and _is_held_out(found):
            if record.value is None:
                raise ResultError(f"{file} has no finite bits per byte: leave {run} out, or train it again.")
            return found, record
    raise ResultError(f"{run} has not been evaluated: {program_command('eval.py', f'run={run}', 'task=perplexity')}")


def _is_held_out(found: Results) -> bool:
    """Whether a result is of the whole test split of the run's own data, in windows of the trained length."""
    protocol = found.protocol
    own = protocol.get("path") is None and protocol.get("split") == "test" and protocol.get("complete") is True
    windows = {protocol.get("window"), protocol.get("stride")}
    return own and not protocol.get("stateful") and windows == {found.model.train_len}


def read_samples(file: str | Path) -> list[dict[str, Any]]:
    """Reads the samples that belong to a result file, an empty list if there are none."""
    path = samples_file(Path(file))
    if not path.is_file():
        return []
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


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
