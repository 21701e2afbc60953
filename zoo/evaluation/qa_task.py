"""Question answering over given texts: a SQuAD-format file, or a data set of the Hub by its preset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from zoo.data.documents import DataError
from zoo.data.qa import PRESETS, load_set
from zoo.data.recall.encoder import Encoder
from zoo.evaluation.cell_task import CellTask, Questions
from zoo.evaluation.run import OpenedRun


@dataclass(frozen=True)
class QAEvaluation(CellTask):
    """Questions of a set, each asked once per length and depth; the same questions at every length.

    Attributes:
        path: a SQuAD-format json or jsonl file, or a local folder with the layout of the preset.
        preset: one of :data:`zoo.data.qa.presets.PRESETS`; None for SQuAD's format.
        config, split, revision: of the data set, where they are not the preset's own.
        max_records: read only the first so many records.
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
        return {found.name: found.fitting(min(self.all_lengths(run)), encoder) if self.skip_longer else found}


@dataclass(frozen=True)
class HubEvaluation(QAEvaluation):
    """Several presets in one go.

    Attributes:
        names: presets; None for all of them. path: a folder with one folder per preset, None for the Hub.
    """

    names: tuple[str, ...] | list[str] | None = None

    def questions(self, run: OpenedRun, encoder: Encoder) -> Mapping[str, Questions]:
        """One set of records per preset."""
        unknown = [name for name in self.names or () if name not in PRESETS]
        if unknown:
            raise DataError(f"task.names has {unknown[0]!r}: expected some of {', '.join(PRESETS)}.")
        found: dict[str, Questions] = {}
        for name in self.names if self.names is not None else PRESETS:
            path = None if self.path is None else f"{self.path.rstrip('/')}/{name}"
            found |= super(HubEvaluation, replace(self, path=path, preset=name)).questions(run, encoder)
        return found
