"""What a run of the benchmark is asked for, as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from zoo_kernels.bench.registry import names_of

FIRST = "first"  # the piece for the first minutes on a GPU, which no other name includes
RESULTS = Path("runs") / "kernels"  # where the pieces on CUDA leave their files if nothing else is said


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        device: cpu or cuda.
        suite: "cpu" or "cuda", the set of pieces; a dry run has the pieces of cuda on the CPU.
        scale: "full", "quick" or "dry", the table of shapes.
        pieces: names, or FIRST alone.
        out: file of the CPU tables, folder of the files of all other pieces; None for no file.
        plot: file of the picture of the CPU tables; None for none.
        threads: of PyTorch, 0 to leave them.
        minutes: that a piece may take on CUDA, its process included; on the CPU it starts no row after them.
        seconds: that piece=first may take in all.
        only: rows are kept whose name holds this text.
        given: the arguments as they were typed.
    """

    device: torch.device
    suite: str
    scale: str
    pieces: tuple[str, ...]
    out: Path | None = None
    plot: Path | None = None
    threads: int = 0
    minutes: float = 8.0
    seconds: float = 280.0
    only: str = ""
    given: tuple[str, ...] = ()


def chosen_pieces(text: str, suite: str) -> tuple[str, ...]:
    """Names with commas between them, or groups by their first word: ``correctness`` is all that begin with it.

    Raises:
        ValueError: if a name does not exist in the suite.
    """
    known = names_of(suite)
    if text == FIRST and suite == "cuda":
        return (FIRST,)
    if text == "all":
        return known
    found: list[str] = []
    more = f", or {FIRST} alone" if suite == "cuda" else ""
    for word in text.split(","):
        matches = [name for name in known if name == word or name.startswith(f"{word}_")]
        if not matches:
            raise ValueError(f"piece={word!r} does not exist here: expected all, {', '.join(known)}{more}.")
        found += [name for name in matches if name not in found]
    return tuple(found)
