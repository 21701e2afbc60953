"""Check that data which have moved since training are still the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.data.documents import SPLITS, DataError, Source, expand
from zoo.data.store.token_store import TokenStore, store_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CHEAP = 100_000  # documents up to which they are compared one by one
SHOWN = 3  # names of each kind


class ChangedData(DataError):
    """Raised for data that are not those of training."""


def check_moved(
    source: Source,
    trained: Mapping[str, str],
    tokenizer: PreTrainedTokenizerFast,
    cache_dir: str | Path,
    caches: Sequence[str | Path],
) -> None:
    """Checks that the splits of a source are those of training.

    Args:
        source: source at its new path.
        trained: keys of the token stores of training by split.
        tokenizer: tokenizer of the run.
        cache_dir: folder of cached fingerprints.
        caches: folders in which the token stores of training may lie, to say what differs.

    Raises:
        ChangedData: names the split, and its documents that differ where their store is still there.
    """
    for split in (name for name in SPLITS if name in trained):
        if store_key(source, split, tokenizer, cache_dir) != trained[split]:
            known = (difference(source, split, expand(cache) / "tokens" / trained[split]) for cache in caches)
            raise ChangedData(
                f"the {split} split of {source.name} is not that of training{next(filter(None, known), '')}: "
                "give a copy of the same data"
            )


def difference(source: Source, split: str, store: Path) -> str:
    """Describes which documents differ from those in a store; empty where that is unknown or slow to find out."""
    try:
        old = TokenStore(store)
    except (OSError, ValueError, KeyError):
        return ""
    if len(old) > CHEAP:
        return ""
    before = dict(zip(old.names, map(tuple, old.counts.tolist())))
    now = {d.name: (len(d.text.encode()), len(d.text.split()), len(d.text)) for d in source.documents(split)}
    kinds = {
        "missing": [name for name in before if name not in now],
        "new": [name for name in now if name not in before],
        "changed": [name for name in before if now.get(name, before[name]) != before[name]],
    }
    told = [f"{len(names):,} {kind}, {_some(names)}" for kind, names in kinds.items() if names]
    return f" ({'; '.join(told)})" if told else " (the same names and sizes, but other text or another order)"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
