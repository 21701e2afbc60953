"""Scores of a generated answer against reference texts, of which the best counts.

Exact match and F1 are those of SQuAD (Rajpurkar et al., 2016, arXiv:1606.05250); contains is that of the recall suite
of Based (Arora et al., 2024, arXiv:2402.18668), and of RULER's question answering (max over references).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
ASCII_PUNCTUATION = frozenset(string.punctuation)


def normalize_answer(text: str) -> str:
    """Normalizes an answer: lower case without punctuation, English articles and extra space.

    These are SQuAD's rules for ASCII text; beyond it, the punctuation of every script is removed too, and composed and
    decomposed characters are the same.
    """
    text = unicodedata.normalize("NFC", text).lower()
    text = "".join(character for character in text if not _is_punctuation(character))
    return " ".join(ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Returns 1.0 if the prediction equals a reference once both are normalized, else 0.0.

    Raises:
        ValueError: if there is no reference.
    """
    found = normalize_answer(prediction)
    return float(any(found == normalize_answer(reference) for reference in _checked(references)))


def f1(prediction: str, references: Sequence[str]) -> float:
    """Computes the F1 of the words of prediction and reference as bags, 0..1, the best over the references.

    If either is empty once normalized, both must be.

    Raises:
        ValueError: if there is no reference.
    """
    found = normalize_answer(prediction).split()
    return max(_overlap(found, normalize_answer(reference).split()) for reference in _checked(references))


def contains(prediction: str, references: Sequence[str]) -> float:
    """Returns 1.0 if the prediction contains a reference, regardless of case, else 0.0.

    A reference without text is in no prediction.

    Raises:
        ValueError: if there is no reference.
    """
    text = _folded(prediction)
    wanted = [_folded(reference).strip() for reference in _checked(references)]
    return float(any(reference in text for reference in wanted if reference))


def _is_punctuation(character: str) -> bool:
    return character in ASCII_PUNCTUATION or unicodedata.category(character).startswith("P")


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _overlap(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    shared = (Counter(found) & Counter(wanted)).total()
    return 2 * shared / (len(found) + len(wanted))


def _checked(references: Sequence[str]) -> Sequence[str]:
    if not references or isinstance(references, str):
        raise ValueError(f"references={references!r}: expected a list with at least one text.")
    return references
