"""Question answering over given texts: a SQuAD-format file, or a data set of the Hub by its preset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from zoo.config import ConfigError
from zoo.data.qa import PRESETS, QASet, load_set
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.samples import RecallError
from zoo.evaluation.cell_task import CellTask, Questions
from zoo.evaluation.run import OpenedRun


@dataclass(frozen=True)
class QAEvaluation(CellTask):
    """Questions of a set, each asked once per length and depth; the same questions at every length.

    Attributes:
        path: a SQuAD-format json or jsonl file, or a local folder with the layout of the preset.
        preset: one of :data:`zoo.data.qa.presets.PRESETS`; None for SQuAD's format.
        config, split, revision: of the data set, where they are not the preset's own.
        max_records: read only the first so many records; None for all, or the preset's own limit if it is streamed.
        skip_longer: leave out records that do not fit the shortest length; False: such a record is an error.
    """

    path: str | None = None
    preset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    max_records: int | None = None
    skip_longer: bool = True

    def questions(self, run: OpenedRun, encoder: Encoder) -> Mapping[str, Questions]:
        """One set of records.

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
            cache_dir=run.config.data.cache_dir,
        )
        return {found.name: self._fitting(found, run, encoder) if self.skip_longer else found}

    def _fitting(self, found: QASet, run: OpenedRun, encoder: Encoder) -> QASet:
        """The records that fit the shortest length that any fits; a length that was asked for must fit some."""
        lengths = self.all_lengths(run)
        for length in lengths if self.lengths is None else lengths[:1]:
            try:
                return found.fitting(length, encoder)
            except RecallError as error:
                reason = error
        raise reason


@dataclass(frozen=True)
class HubSuite(QAEvaluation):
    """Several presets, each with its own result file; one that cannot be read is left out.

    Attributes:
        names: presets; None for all of them. path: a folder with one folder per preset; None for the Hub.
    """

    names: Sequence[str] | None = None

    def tasks(self) -> Iterator[tuple[str, QAEvaluation]]:
        """One task per preset.

        Raises:
            ConfigError: on an unknown preset.
        """
        unknown = [name for name in self.names or () if name not in PRESETS]
        if unknown:
            raise ConfigError(f"task.names has {unknown[0]!r}: expected some of {', '.join(PRESETS)}.")
        shared = {f.name: getattr(self, f.name) for f in fields(QAEvaluation)}
        for name in self.names if self.names is not None else PRESETS:
            path = None if self.path is None else str(Path(self.path) / name)
            yield name, QAEvaluation(**shared | {"name": "qa", "preset": name, "path": path})
