"""Command line of the benchmark: KEY=VALUE, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from zoo.cli import choose_device

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
DEFAULTS = {
    "device": "auto",
    "piece": "all",
    "out": "",
    "plot": "",
    "quick": "false",
    "dry": "false",
    "threads": "0",
    "minutes": "8",
    "seconds": "280",
    "only": "",
}


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


def parse(arguments: list[str]) -> Options:
    """Options from KEY=VALUE arguments.

    Raises:
        ValueError: on an unknown key, piece or device, or a value that is not of its type.
    """
    given = dict(a.partition("=")[::2] for a in arguments)
    if unknown := set(given) - set(DEFAULTS):
        raise ValueError(f"unknown option {', '.join(sorted(unknown))}: expected {', '.join(DEFAULTS)}.")
    chosen = {**DEFAULTS, **given}
    dry, quick = _flag(chosen, "dry"), _flag(chosen, "quick")
    device = choose_device(chosen["device"])
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={chosen['device']}: expected cpu or cuda.")
    if dry and device.type != "cpu":
        raise ValueError("dry=true goes with device=cpu.")
    suite = "cuda" if dry else device.type
    if suite == "cuda" and (quick or chosen["plot"]):
        raise ValueError("quick and plot belong to the CPU tables; on CUDA choose by piece=, only= and minutes=.")
    return Options(
        device=device,
        suite=suite,
        scale="dry" if dry else "quick" if quick else "full",
        pieces=_pieces(chosen["piece"], CPU_PIECES if suite == "cpu" else CUDA_PIECES),
        out=_out(chosen["out"], always=suite == "cuda" and not dry),
        plot=Path(chosen["plot"]) if chosen["plot"] else None,
        threads=int(_number(chosen, "threads")),
        minutes=_number(chosen, "minutes"),
        seconds=_number(chosen, "seconds"),
        only=chosen["only"],
        given=tuple(arguments),
    )


def _out(text: str, always: bool) -> Path | None:
    return Path(text) if text else RESULTS if always else None


def _flag(chosen: dict[str, str], key: str) -> bool:
    if chosen[key] not in ("true", "false"):
        raise ValueError(f"{key}={chosen[key]}: expected true or false.")
    return chosen[key] == "true"


def _number(chosen: dict[str, str], key: str) -> float:
    try:
        number = float(chosen[key])
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise ValueError(f"{key}={chosen[key]}: expected a number >= 0.")
    return number


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
