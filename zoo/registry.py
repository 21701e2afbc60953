"""Registries of what is chosen by name: one decorator for each kind, for this project and external packages alike.

    from zoo.registry import OPTIMIZERS

    @OPTIMIZERS.register("sgd")
    def sgd(decoder, lr: float = 0.1): ...

Needs nothing but the standard library, so that every room can use it. Entries of this project are imported when a name
is first asked for; packages that are installed with an entry point of the group ``attention_zoo.plugins`` are imported
when a name is found nowhere else.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Any, Generic, TypeVar

GROUP = "attention_zoo.plugins"
INSIDE = "zoo"

Entry = TypeVar("Entry")
Given = TypeVar("Given")

_closed: ContextVar[bool] = ContextVar("closed", default=False)
_from_entry_points: list[str] = []  # modules that were imported because a name was found nowhere else


class Registry(Generic[Entry]):
    """Registry of one kind of thing by name.

    Attributes:
        kind: what an entry is, for messages.
        shared: parameters of an entry that are not options: whoever builds it passes them.
    """

    def __init__(self, kind: str, *places: str, shared: tuple[str, ...] = ()) -> None:
        """Make an empty registry.

        Args:
            kind: what an entry is.
            places: modules, or packages whose modules, register what is inside.
            shared: parameters of an entry that are no options.
        """
        self.kind, self.shared = kind, shared
        self._places: tuple[str, ...] = places
        self._entries: dict[str, Any] = {}
        self._options: dict[str, Any] = {}
        self._members: list[tuple[Registry[Any], Entry]] = []

    def register(self, name: str, options: Any = None) -> Callable[[Given], Given]:
        """Decorator that registers a class or function as ``name``.

        Args:
            name: the name that it is chosen by.
            options: pydantic model of its options; None: they are those of its signature.

        Raises:
            ValueError: if another one has this name.
        """

        def add(entry: Given) -> Given:
            made: Any = entry
            if name in self._entries:
                first, second = (f"{one.__module__}.{one.__qualname__}" for one in (self._entries[name], made))
                raise ValueError(f"two {self.kind}s are called {name!r}: {first} and {second}. Rename one of them.")
            self._entries[name], self._options[name] = made, options
            return entry

        return add

    def include(self, other: Registry[Any], entry: Entry) -> None:
        """Adds every name of another registry, now and later, with ``entry`` as its value."""
        self._members.append((other, entry))

    def names(self) -> list[str]:
        """Returns all names, sorted; those of entry points only once they have been imported."""
        self._import_inside()
        return sorted({*self._entries, *(name for other, _ in self._members for name in other.names())})

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (self._has(name) or import_entry_points(name, self._has))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def get(self, name: str) -> Entry:
        """Returns the entry called ``name``.

        Raises:
            ValueError: if there is none; the message lists what exists.
        """
        if name not in self:
            near = difflib.get_close_matches(str(name), self.names(), 1)
            hint = f"did you mean {near[0]}? Expected" if near else "expected"
            raise ValueError(f"unknown {self.kind} {name!r}: {hint} one of {', '.join(self.names())}.")
        if name in self._entries:
            found: Entry = self._entries[name]
            return found
        return next(entry for other, entry in self._members if other._has(name))

    def options(self, name: str) -> Any:
        """Returns the options model of ``name``; None if its options are those of its signature."""
        return self._options.get(name)

    def outside(self) -> list[str]:
        """Returns the names that external packages have registered, sorted."""
        own = [name for name, e in self._entries.items() if e.__module__.partition(".")[0] != INSIDE]
        return sorted({*own, *(name for other, _ in self._members for name in other.outside())})

    def _has(self, name: str) -> bool:
        self._import_inside()
        return name in self._entries or any(other._has(name) for other, _ in self._members)

    def _import_inside(self) -> None:
        places, self._places = self._places, ()
        for place in places:
            module = import_module(place)
            for found in iter_modules(getattr(module, "__path__", ())):
                import_module(f"{place}.{found.name}")


def import_entry_points(wanted: str, found: Callable[[str], bool]) -> bool:
    """Imports entry points of installed packages until ``wanted`` is found; one of that name first.

    An entry point that fails is a warning with its name and the error.

    Returns:
        Whether it was found.
    """
    if _closed.get():
        return False
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name != wanted, point.name)):
        if point.module in _from_entry_points:
            continue
        try:
            point.load()
        except Exception as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(f"the plugin {point.name} ({point.value}) cannot be imported: {line}", stacklevel=2)
            continue
        _from_entry_points.append(point.module)
        if found(wanted):
            return True
    return False


def imported_entry_points() -> list[str]:
    """Returns the modules that were imported as entry points."""
    return list(_from_entry_points)


@contextmanager
def nothing_imported() -> Iterator[None]:
    """Context manager in which lookups import nothing, for names read from a run folder."""
    token = _closed.set(True)
    try:
        yield
    finally:
        _closed.reset(token)


ATTENTIONS: Registry[Any] = Registry("attention", "zoo.mixers", shared=("self", "width", "heads", "depth", "layer"))
SOURCES: Registry[Any] = Registry("data source", "zoo.data.sources")
RECALL_TASKS: Registry[Any] = Registry("recall task", "zoo.data.recall.tasks")
METRICS: Registry[Any] = Registry("metric", "zoo.evaluation.results.metrics")
TASKS: Registry[Any] = Registry("task", "zoo.evaluation.tasks", "zoo.evaluation.lm_eval.task")
OPTIMIZERS: Registry[Any] = Registry("optimizer", "zoo.training.optimizers", shared=("decoder",))
LOGGERS: Registry[Any] = Registry("logger", "zoo.training.monitoring.remote_loggers", shared=("folder", "settings"))
