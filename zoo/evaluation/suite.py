"""Several tasks in one go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zoo.evaluation.cell_task import CellTask
from zoo.evaluation.tasks import Task, build_task


@dataclass(frozen=True)
class Suite:
    """Tasks that are evaluated one after the other, each with its own result file.

    ``lengths`` leave out what does not fit them, with a note.

    Attributes:
        members: options of each task by its name; None for one that is left out.
        lengths, samples, haystack: of every member made of samples; None for its own. fresh: of every member.
    """

    name: str
    members: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    lengths: Sequence[int] | None = None
    samples: int | None = None
    haystack: str | None = None
    fresh: bool | None = None

    def tasks(self) -> Iterator[tuple[str, Task]]:
        """The members by name.

        Raises:
            ConfigError: on an unknown task or option.
        """
        common = {key: getattr(self, key) for key in ("lengths", "samples", "haystack")}
        for name, options in self.members.items():
            if options is not None:
                own = {"name": name, **options}
                if "samples" in own:
                    own |= {key: value for key, value in common.items() if value is not None}
                if self.fresh is not None:
                    own["fresh"] = self.fresh
                task = build_task(own)
                if isinstance(task, CellTask) and self.lengths is not None:
                    object.__setattr__(task, "strict", False)  # lengths of all are not those of one
                yield name, task
