"""Models of result files in the format ``zoo-eval/1``, from which its JSON schema is made.

``python -m zoo.evaluation.results.models`` writes the schema, zoo-eval-1.schema.json beside this file, anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema

from zoo.evaluation.results.metrics import metric_named
from zoo.files import replace_text
from zoo.paths import shown
from zoo.registry import METRICS

SCHEMA = "zoo-eval/1"
SCHEMA_FILE = Path(__file__).with_name("zoo-eval-1.schema.json")


def _known(name: str) -> str:
    if not metric_named(name).label:
        raise ValueError(f"no metric is called so: expected one of {', '.join(METRICS)}; plugins=[...] brings others")
    return name


def _own_metrics(schema: dict[str, Any]) -> None:
    outside = METRICS.outside()
    schema["examples"] = [name for name in METRICS if name not in outside]


def _shown(name: Any) -> Any:
    return shown(name) if isinstance(name, str) else name


Name = Annotated[str, BeforeValidator(_shown)]  # may come from a file whose name is not UTF-8
Interval = Annotated[tuple[float, float], Strict(False)]  # a list in a file
MetricName = Annotated[str, AfterValidator(_known), Field(json_schema_extra=_own_metrics)]
Number = Annotated[int | float, WithJsonSchema({"type": "number"})]  # stays what it is in a file: 0 is not 0.0
Bytes = Annotated[dict[str, Number], Field(description="bytes that decoding keeps per sequence, by length in tokens")]


class _Section(BaseModel):
    """Values of the types that are declared, finite; more keys than these may come."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class Record(_Section):
    """One number of an evaluation.

    Attributes:
        task: what was asked.
        variant: how it was asked.
        length: context in tokens.
        depth: place of the answer in the context, 0 to 1; None for any, or for all together.
        metric: a registered one, see :mod:`zoo.evaluation.results.metrics`.
        value: None where it is not a finite number.
        ci95: 95 % interval, None where it cannot be told.
        n: independent units.
        unit: what these are, as ``doc`` or ``sample``.
        chance: value of guessing, None where there is none.
        higher_is_better: whether more is better.
        wall_s: seconds taken.
        tok_s: tokens scored per second.
        peak_mem: bytes of GPU memory, None on a CPU.
    """

    model_config = ConfigDict(json_schema_extra={"description": "One number."})

    task: str
    variant: Name = Field(
        description="how it was asked; /no_context: the question alone, /zero_length: facts without filler, "
        "/generated: by generation in place of teacher forcing"
    )
    length: int = Field(ge=0, description="tokens of context; 0 for the baselines")
    depth: Number | None = Field(description="of the fact asked for, 0..1; null: anywhere, or all depths")
    metric: MetricName = Field(description="a registered metric; those of this project are the examples")
    value: float | None = Field(description="null where it is not finite")
    ci95: Interval | None = Field(
        description="95 % interval: Wilson's for shares of samples, else a bootstrap over units"
    )
    n: int = Field(ge=1, description="independent units")
    unit: str = Field(min_length=1, description="what a unit is: doc, sample, or that of a task from outside")
    chance: float | None = Field(description="value of guessing")
    higher_is_better: bool
    wall_s: float | None = None
    tok_s: float | None = None
    peak_mem: int | None = Field(default=None, description="bytes of GPU memory")


class RunSection(_Section):
    """Where and how the numbers were made."""

    id: str = Field(description="name of the run folder")
    time: str = Field(description="of the evaluation, ISO 8601, UTC")
    git: Any = Field(description="commit of the code that trained the run, or null")
    cmd: str
    host: str
    torch: str
    cuda: str | None
    device: str
    dtype: str
    seed: int = Field(description="of samples and of bootstraps")


class ModelSection(_Section):
    """The model that was asked."""

    name: str = Field(description="layers as a schedule pattern")
    config_sha: str
    ckpt_sha: str
    checkpoint: str
    step: int
    params: int
    params_non_emb: int
    layers: list[str]
    train_tokens: int
    train_len: int
    adapted: bool = Field(description="whether recall tasks were part of the training")
    recall: Any = Field(description="the recall tasks of the training, or null")
    state_bytes: Bytes = Field(alias="state_bytes@L")
    kv_bytes: Bytes = Field(alias="kv_bytes@L")


class TokenizerSection(_Section):
    """The tokenizer of the model."""

    name: str | None
    sha: str
    vocab: int
    bytes_per_token: float | None = Field(description="measured on the evaluated text")


class Results(_Section):
    """One file per task and run. FILE.samples.jsonl.gz beside it has one line per document or sample."""

    model_config = ConfigDict(title="Result of an evaluation")

    schema_: Literal["zoo-eval/1"] = Field(alias="schema")
    run: RunSection
    model: ModelSection
    tokenizer: TokenizerSection
    protocol: dict[str, Any] = Field(description="All that two results must share to be compared.")
    results: list[Record]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values with the names of the file, in its order."""
        return self.model_dump(mode="json", by_alias=True)


class _NoTitles(GenerateJsonSchema):
    """Names of fields are told once, as keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never."""
        return False


def schema_text() -> str:
    """Returns the content of the schema file for these models."""
    made = Results.model_json_schema(by_alias=True, mode="serialization", schema_generator=_NoTitles)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA}
    return json.dumps(head | made, indent=2) + "\n"


if __name__ == "__main__":
    replace_text(SCHEMA_FILE, schema_text())
