"""What a first call on a GPU is for, the most telling first: that every kernel is right, then the headline speeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

from kernel_bench import decode, linear, softmax, sparse
from kernel_bench.bench import Bench, Shape
from kernel_bench.ceilings import bandwidth, matrix_rate
from kernel_bench.correctness import dtypes, label
from kernel_bench.decode_cases import StepCase, check_step, step_cases
from kernel_bench.inputs import BOTH, FORWARD
from kernel_bench.linear_cases import check_linear, linear_cases
from kernel_bench.softmax_cases import check_softmax, softmax_cases

CHECKS, SPEEDS = "check", "speed"  # kinds of steps
SMALL = 300  # tokens of a case that is checked here; longer ones belong to piece=correctness
STRIDE = 5  # a dry run takes every fifth case
GROUP = 4  # cases of a step: what a process that dies can lose


class Step(NamedTuple):
    """A part of the piece that is done or not done, with a file of its own.

    Attributes:
        name: unique, and the name of its file.
        kind: CHECKS or SPEEDS.
        run: does the work on a Bench.
    """

    name: str
    kind: str
    run: Callable[[Bench], None]


def steps(bench: Bench) -> list[Step]:
    """All steps in the order in which they matter; the same list in every process."""
    return [*_checks(bench), *(Step(name, SPEEDS, run) for name, run in SPEED.items())]


def _checks(bench: Bench) -> Iterator[Step]:
    """Every kernel, forward and backward, in both half precisions; the families take turns."""
    families: dict[str, tuple[Iterable[Any], Callable[..., None]]] = {
        "linear": ((c for c in linear_cases(bench.dry) if c.length <= SMALL), check_linear),
        "softmax": ((c for c in softmax_cases(bench.dry) if c.keys <= SMALL), check_softmax),
        "decode": ((c for c in step_cases(bench.dry) if _short(c)), check_step),
    }
    groups = [list(_groups(bench, family, *how)) for family, how in families.items()]
    for turn in zip_longest(*groups):
        yield from filter(None, turn)


def _short(case: Any) -> bool:
    return not isinstance(case, StepCase) or case.capacity <= 1000


def _groups(bench: Bench, family: str, cases: Iterable[Any], check: Callable[..., None]) -> Iterator[Step]:
    chosen = list(dict.fromkeys(cases))[:: STRIDE if bench.dry else 1]
    items = [(dtype, case) for case in chosen for dtype in dtypes(bench)]
    for number, start in enumerate(range(0, len(items), GROUP)):
        yield Step(f"check-{family}-{number}", CHECKS, partial(_check, items[start : start + GROUP], check))


def _check(items: list[tuple[Any, Any]], check: Callable[..., None], bench: Bench) -> None:
    bench.each(items, lambda item: check(bench, *item), label)


def _lightning(length: int, bench: Bench) -> None:
    tokens = 32 if bench.dry else 256 * 1024
    length, heads, width = (min(length, 16), 2, 16) if bench.dry else (length, linear.HEADS, linear.WIDTH)
    shape = Shape(tokens // length, length, heads, width)
    bandwidth(bench)

    def run(direction: str) -> None:
        linear.time_lightning(bench, "lightning", shape, direction, linear.ROOFLINE[direction])

    bench.each([FORWARD, BOTH], run, lambda direction: f"lightning {direction} T{length}")


def _flash(bench: Bench) -> None:
    shape = Shape(1, 33, 2, 16) if bench.dry else Shape(2, softmax.AIM, 16, 128)
    matrix_rate(bench)
    bench.each([shape], lambda s: softmax.causal(bench, "causal", s, True, peers=("sdpa",)), lambda s: f"causal {s}")


def _window(bench: Bench) -> None:
    softmax.windows(bench, ((8, 0),) if bench.dry else ((1024, 0),))


def _bigbird(bench: Bench) -> None:
    sparse.sparse(bench, [sparse.Pattern("bigbird", *((16,) * 4 if bench.dry else (128, 768, 512, 768)))])


def _decode(bench: Bench) -> None:
    heads, groups, width = (4, 2, 16) if bench.dry else (32, 8, 128)
    bandwidth(bench)
    contexts = (40,) if bench.dry else (32_768, 131_072)
    decode.softmax_steps(bench, [Shape(1, t, heads, width, groups) for t in contexts])
    decode.linear_steps(bench, [Shape(1, 1, 2 if bench.dry else 64, width)])


SPEED: dict[str, Callable[[Bench], None]] = {
    "lightning-8k": partial(_lightning, 8192),
    "lightning-64k": partial(_lightning, 65_536),
    "flash-8k": _flash,
    "window-32k": _window,
    "bigbird-32k": _bigbird,
    "decode": _decode,
}
