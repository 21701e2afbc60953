"""Documents, the contract of their sources, and their division into train, validation and test."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from zoo.paths import expand as expand

SPLITS = ("train", "validation", "test")
FRACTIONS = (0.9, 0.05, 0.05)
CACHE = "~/.cache/attention-zoo"
ESCAPED = r"\x"  # what an escaped name has, and no other


@dataclass(frozen=True)
class Named:
    """Option in the message of a :class:`DataError`, whose full name depends on the program.

    Attributes:
        option: its name in the source, as ``path``.
        told: text with ``{}`` in place of the name.
        otherwise: text where there is no such option.
    """

    option: str
    told: str = "{}"
    otherwise: str = ""


class DataError(ValueError):
    """Raised for data that cannot be used; the message says the value, what was expected, and what to do about it.

    Options are named as those of a data source, ``data.path`` and ``data.source.OPTION``, until :meth:`call` renames
    them.

    Args:
        parts: parts of the message: text, and :class:`Named` for options.
    """

    def __init__(self, *parts: str | Named) -> None:
        super().__init__(*parts)
        self._names: Mapping[str, str | None] = {"path": "data.path"}
        self._prefix = "data.source."

    @property
    def option(self) -> str | None:
        """Full name of the first option in the message; None if it names none."""
        return next((self._name(part) for part in self.args if isinstance(part, Named)), None)

    def call(self, prefix: str, **names: str | None) -> None:
        """Renames the options to those of another program.

        Args:
            prefix: prefix of the names, as ``task.``.
            names: full names of options that are called otherwise there; None for one that does not exist.
        """
        self._prefix, self._names = prefix, names

    def _name(self, part: Named) -> str | None:
        return self._names.get(part.option, f"{self._prefix}{part.option}")

    def __str__(self) -> str:
        return "".join(self._tell(part) if isinstance(part, Named) else str(part) for part in self.args)

    def _tell(self, part: Named) -> str:
        name = self._name(part)
        return part.otherwise if name is None else part.told.format(name)


@dataclass(frozen=True)
class Document:
    """A text and the name it is reported under."""

    name: str
    text: str


class Source(Protocol):
    """Protocol of sources of documents; the order of a split never changes while its documents do not."""

    name: str

    def documents(self, split: str) -> Iterator[Document]:
        """Yields the documents of "train", "validation" or "test", in a fixed order."""
        ...

    def fingerprint(self, split: str) -> str:
        """Returns a content address, which changes if and only if the documents of the split change."""
        ...


def source_notes(source: Source) -> dict[str, str]:
    """Returns a source's description of its splits and of files that are not read; empty without ``describe``."""
    describe: Callable[[], dict[str, str]] | None = getattr(source, "describe", None)
    return {} if describe is None else describe()


def check_split(split: str) -> None:
    """Checks that `split` is one of the three names every source uses.

    Raises:
        DataError: if it is not.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")


class DocumentDigest:
    """SHA-256 over names and texts in order; lengths are hashed too, so that no two lists share a digest."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, document: Document) -> None:
        """Adds one document."""
        for part in (document.name.encode("utf-8", "surrogatepass"), document.text.encode()):
            self._digest.update(len(part).to_bytes(8, "big"))
            self._digest.update(part)

    def hexdigest(self) -> str:
        """Returns the digest of all documents so far, in hexadecimal digits."""
        return self._digest.hexdigest()


def digest_documents(documents: Iterable[Document]) -> str:
    """Returns the SHA-256 over a list of documents; see :class:`DocumentDigest`."""
    digest = DocumentDigest()
    for document in documents:
        digest.update(document)
    return digest.hexdigest()


def text_hash(text: str) -> int:
    """Returns the first 64 bits of the text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_index(hashed: int, fractions: Sequence[float]) -> int:
    """Returns the index into SPLITS for a 64-bit hash, so that a document keeps its split when others come or go."""
    position = hashed / 2**64
    if position < fractions[0]:
        return 0
    return 1 if position < fractions[0] + fractions[1] else 2


def check_fractions(fractions: Sequence[float]) -> tuple[float, float, float]:
    """Returns train, validation and test fractions as floats.

    Raises:
        DataError: unless they are three, positive and sum to 1.
    """
    values = tuple(float(value) for value in fractions)
    if len(values) != 3 or min(values) < 0 or values[0] == 0 or values[1] == 0 or abs(sum(values) - 1) > 1e-6:
        raise DataError(
            f"split_fractions={list(values)}: expected three fractions (train, validation, test) that sum to 1, "
            "the first two above 0"
        )
    return values[0], values[1], values[2]


def assign_splits(hashes: np.ndarray, fractions: Sequence[float]) -> np.ndarray | None:
    """Assigns a split (index, uint8) to every document by its 64-bit hash.

    A corpus of few documents can leave a split empty; it is then divided by the rank of the hash instead. Documents
    with equal text share a split.

    Returns:
        The split of each document, or None if there are fewer different texts than splits.
    """
    assigned = np.array([split_index(int(hashed), fractions) for hashed in hashes], dtype=np.uint8)
    wanted = {index for index in range(3) if fractions[index] > 0}
    if wanted <= set(assigned.tolist()):
        return assigned
    unique = np.unique(hashes)
    if len(unique) < len(wanted):
        return None
    validation = max(1, round(fractions[1] * len(unique)))
    test = max(1, round(fractions[2] * len(unique))) if fractions[2] > 0 else 0
    validation = min(validation, len(unique) - test - 1)
    ranks = np.searchsorted(unique, hashes)
    train = len(unique) - validation - test
    return ((ranks >= train).astype(np.uint8) + (ranks >= train + validation)).astype(np.uint8)


def cut_document(text: str, fractions: Sequence[float]) -> tuple[str, str, str]:
    """Cuts a single text into head, middle and tail, at paragraph or line ends where one is near."""
    ends = [round(len(text) * fractions[0]), round(len(text) * (fractions[0] + fractions[1]))]
    slack = min(len(text) // 40, (ends[1] - ends[0]) // 2)
    cuts = [_boundary(text, end, slack) for end in ends]
    if fractions[2] == 0:
        cuts[1] = len(text)
    return text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]


def _boundary(text: str, end: int, slack: int) -> int:
    for separator in ("\n\n", "\n"):
        found = text.rfind(separator, end - slack, end)
        if found >= 0:
            return found + len(separator)
    return end


def escape_name(name: str) -> str:
    r"""A file name that any encoding can hold: bytes that are not UTF-8 become `\xNN`, see :func:`unescape_name`.

    Examples:
        >>> escape_name("caf\udce9.txt")
        'caf\\xe9.txt'
        >>> escape_name("café.txt")
        'café.txt'
    """
    raw = name.encode("utf-8", "surrogateescape")
    try:
        raw.decode()
        foreign = False
    except UnicodeDecodeError:
        foreign = True
    if not foreign and ESCAPED not in name:
        return name
    return raw.replace(b"\\", rb"\x5c").decode("utf-8", "backslashreplace")


def unescape_name(name: str) -> str:
    """Returns the file name that :func:`escape_name` was given."""
    if ESCAPED not in name:
        return name
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), name.encode())
    return raw.decode("utf-8", "surrogateescape")
