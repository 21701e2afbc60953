"""Question answering over given texts: a SQuAD-format file, or a data set of the Hub by its preset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from zoo.data.qa import PRESETS, QASet, load_set
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.samples import RecallError
from zoo.evaluation.tasks.base import Role, TaskSuite, Words
from zoo.evaluation.tasks.cell_task import CellTask, Questions
from zoo.registry import TASKS
from zoo.runs.file_names import path_part
from zoo.runs.subject import Subject
from zoo.schema.base import Flag, PathText, Positive, Text, option
from zoo.schema.messages import sentence, suggest


def _known_presets(names: list[str]) -> list[str]:
    for name in names:
        if name not in PRESETS:
            raise ValueError(f"task.names has {name}, which is no preset; {sentence(suggest(name, PRESETS))}")
    return names


def _known_preset(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(f"task.preset={name}: unknown preset; {sentence(suggest(name, PRESETS))}")
    return name


@TASKS.register("qa")
class QAEvaluation(CellTask):
    """Questions of a set, each asked once per length and depth; the same questions at every length."""

    path: Annotated[PathText | None, Role.PLACED] = option(
        "a SQuAD-format .json or .jsonl file, or a local folder with the layout of the preset", default=None
    )
    preset: Annotated[Annotated[Text, AfterValidator(_known_preset)] | None, Role.NAMED] = option(
        f"a data set: {', '.join(PRESETS)}; null: a file in SQuAD's format", default=None
    )
    config: Annotated[Text | None, Role.NAMED] = option("of the data set; null: the preset's", default=None)
    split: Annotated[Text | None, Role.NAMED] = option("of the data set; null: the preset's", default=None)
    max_records: Positive | None = option(
        "read only the first so many records; null: all, or the first 512 of a set that is streamed", default=None
    )
    revision: Text | None = option("of the Hub's repository", default=None)
    skip_longer: Flag = option(
        "leave out questions whose text does not fit the shortest length; false: they are an error", default=True
    )

    def questions(self, subject: Subject, encoder: Encoder) -> Mapping[str, Questions]:
        """Reads the set of records, which is the only variant.

        Raises:
            DataError: if the data cannot be read, or no record fits.
        """
        found = load_set(
            self.path,
            self.preset,
            self.config,
            self.split,
            self.max_records,
            self.revision,
            cache_dir=subject.text.cache_dir,
        )
        return {found.name: self._fitting(found, subject, encoder) if self.skip_longer else found}

    def places(self) -> list[str]:
        """Returns the name of the file or folder, with digits of a hash of its path."""
        return [] if self.path is None else [Path(self.path).stem, path_part(self.path)]

    def _fitting(self, found: QASet, subject: Subject, encoder: Encoder) -> QASet:
        """The records that fit the shortest length that any fits; a length that was asked for must fit some."""
        lengths = self.all_lengths(subject)
        for length in lengths if self.lengths is None else lengths[:1]:
            try:
                return found.fitting(length, encoder)
            except RecallError as error:
                reason = error
        raise reason


@TASKS.register("hub")
class HubSuite(QAEvaluation, TaskSuite):
    """Several presets, each with its own result file; one that cannot be read is left out."""

    names: Annotated[Words, AfterValidator(_known_presets)] | None = option("presets; null: all of them", default=None)
    path: Annotated[PathText | None, Role.PLACED] = option(
        "a folder with one folder per preset; null: the Hub", default=None
    )

    def tasks(self) -> Iterator[tuple[str, QAEvaluation]]:
        """Yields one task per preset."""
        shared = {name: getattr(self, name) for name in QAEvaluation.model_fields}
        for name in self.names if self.names is not None else PRESETS:
            path = None if self.path is None else str(Path(self.path) / name)
            yield name, QAEvaluation(**shared | {"name": "qa", "preset": name, "path": path})
