"""Command line of the benchmark: KEY=VALUE, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Lt

from zoo.cli import choose_device
from zoo.schema.arguments import Arguments, read_arguments
from zoo.schema.base import Count, Flag, option

CPU_PIECES = ("linear", "sparse", "decode")
CUDA_PIECES = (
    "ceilings",
    "correctness_linear",
    "correctness_softmax",
    "correctness_decode",
    "correctness_large",
    "linear",
    "contexts_forward",
    "contexts_training",
    "few_heads",
    "few_heads_exact",
    "widths",
    "softmax",
    "gqa",
    "windows",
    "sparse",
    "decode",
    "overhead",
)
FIRST = "first"  # the piece for the first minutes on a GPU, which no other name includes
RESULTS = Path("runs") / "kernels"  # where the pieces on CUDA leave their files if nothing else is said
Amount = Annotated[float, Ge(0), Lt(1e6)]


class Given(Arguments):
    """Options as they are typed."""

    device: str = option("auto, cpu or cuda", default="auto")
    piece: str = option(
        f"all, or names and their first words with commas between them. On the CPU: {', '.join(CPU_PIECES)}. On a GPU: "
        f"{', '.join(CUDA_PIECES)}, or {FIRST} alone",
        default="all",
    )
    out: str = option("file of the CPU tables; on a GPU the folder of all files, runs/kernels if empty", default="")
    plot: str = option("file of the PNG of the CPU tables; empty: none", default="")
    quick: Flag = option("fewer shapes of the CPU tables", default=False)
    dry: Flag = option("the GPU's pieces on the CPU with tiny shapes, to try the path", default=False)
    threads: Count = option("of PyTorch; 0: as many as it takes", default=0)
    minutes: Amount = option("that a piece may take on a GPU; on the CPU no row begins after them", default=8.0)
    seconds: Amount = option(f"that piece={FIRST} may take in all", default=280.0)
    only: str = option("keep rows whose name holds this text; empty: all", default="")


@dataclass(frozen=True)
class Options:
    """What was asked for.

    Attributes:
        scale: "full", "quick" or "dry", the table of shapes.
        suite: "cpu" or "cuda", the set of pieces; a dry run has the pieces of cuda on the CPU.
        threads: of PyTorch, 0 to leave them.
        out: file of the CPU tables, folder of the files of all other pieces.
        minutes: that a piece may take on CUDA, its process included; on the CPU it starts no row after them.
        seconds: that piece=first may take in all.
        given: the arguments as they were typed.
    """

    device: torch.device
    suite: str
    scale: str
    pieces: tuple[str, ...]
    out: Path | None
    plot: Path | None
    threads: int
    minutes: float
    seconds: float
    only: str
    given: tuple[str, ...]

    @property
    def dry(self) -> bool:
        """Whether only the path through the code is tried, with tiny shapes."""
        return self.scale == "dry"


def parse(arguments: list[str], usage: str = "") -> Options:
    """Options from KEY=VALUE arguments; ``--help`` prints ``usage`` and all options.

    Raises:
        ValueError: on an unknown key, piece or device, or a value that is not of its type.
    """
    chosen, _ = read_arguments(Given, arguments, usage)
    dry, quick = chosen.dry, chosen.quick
    device = choose_device(chosen.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={chosen.device}: expected cpu or cuda.")
    if dry and device.type != "cpu":
        raise ValueError("dry=true goes with device=cpu.")
    suite = "cuda" if dry else device.type
    if suite == "cuda" and (quick or chosen.plot):
        raise ValueError("quick and plot belong to the CPU tables; on CUDA choose by piece=, only= and minutes=.")
    return Options(
        device=device,
        suite=suite,
        scale="dry" if dry else "quick" if quick else "full",
        pieces=_pieces(chosen.piece, CPU_PIECES if suite == "cpu" else CUDA_PIECES),
        out=_out(chosen.out, always=suite == "cuda" and not dry),
        plot=Path(chosen.plot) if chosen.plot else None,
        threads=chosen.threads,
        minutes=chosen.minutes,
        seconds=chosen.seconds,
        only=chosen.only,
        given=tuple(arguments),
    )


def _out(text: str, always: bool) -> Path | None:
    return Path(text) if text else RESULTS if always else None


def _pieces(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Names, or groups of names by their first word: ``correctness`` is all that begin with it."""
    if text == FIRST and known == CUDA_PIECES:
        return (FIRST,)
    if text == "all":
        return known
    found: list[str] = []
    more = f", or {FIRST} alone" if known == CUDA_PIECES else ""
    for word in text.split(","):
        matches = [name for name in known if name == word or name.startswith(f"{word}_")]
        if not matches:
            raise ValueError(f"piece={word!r} does not exist here: expected all, {', '.join(known)}{more}.")
        found += [name for name in matches if name not in found]
    return tuple(found)
