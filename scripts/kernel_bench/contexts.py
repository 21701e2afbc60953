"""Linear beside exact attention over contexts, as many tokens in each: from which context on it is faster."""

from __future__ import annotations

import zoo_kernels
from kernel_bench.bench import Bench, Row, Shape
from kernel_bench.ceilings import matrix_rate
from kernel_bench.forms import Timings, add_rates, flops, time_forms
from kernel_bench.inputs import BOTH, FORWARD, Attention, low_precision, slopes
from kernel_bench.peers import add_flex, causal_mask, sdpa_peers
from kernel_bench.softmax import AIM, GOALS, ours

LIGHTNING, SOFTMAX = "ours, lightning", "ours, softmax"
LEAD = {FORWARD: 2048, BOTH: 4096}  # tokens from which lightning must be faster than our exact attention

LONG = 64 * 1024  # tokens beyond which exact attention takes most of the minutes


def contexts_forward(bench: Bench) -> None:
    """Forward alone."""
    _contexts(bench, FORWARD)


def contexts_training(bench: Bench) -> None:
    """Forward and backward together."""
    _contexts(bench, BOTH)


def _contexts(bench: Bench, direction: str) -> None:
    """All contexts with the same number of tokens, the shortest first, and those that take minutes last.

    FlexAttention, which is compiled anew for each, has a row of its own at every other length.
    """
    tokens, heads, width = (32, 2, 16) if bench.dry else (512 * 1024, 16, 128)
    lengths = [16, 32] if bench.dry else [1024 << i for i in range(10)]
    short, long = ([t for t in lengths if (t <= LONG) == is_short] for is_short in (True, False))
    rows = [(t, False) for t in short] + [(t, True) for t in short[::2]]
    rows += [(t, False) for t in long] + [(t, True) for t in long[1::2]]
    timings: dict[int, Timings] = {t: {} for t in lengths}
    matrix_rate(bench)

    def run(item: tuple[int, bool]) -> None:
        length, compiled = item
        shape = Shape(tokens // length, length, heads, width)
        forms: dict[str, Attention] = {} if compiled else _forms(bench, heads)
        if compiled:
            add_flex(bench, f"contexts {shape}", forms, lambda: causal_mask(length, bench.device))
        _row(bench, direction, shape, forms, timings[length])

    bench.each(rows, run, lambda item: f"contexts {direction} T{item[0]}{', flex' if item[1] else ''}")
    longest = Shape(tokens // lengths[-1], lengths[-1], heads, width)
    _leads(bench, Row("contexts", longest, low_precision(bench), LIGHTNING, direction), timings)


def _forms(bench: Bench, heads: int) -> dict[str, Attention]:
    decay, linear = slopes(heads, bench.device), bench.ours(zoo_kernels.linear_attention)
    return {
        LIGHTNING: lambda q, k, v: linear(q, k, v, decay)[0],
        SOFTMAX: ours(bench),
        **sdpa_peers(bench),
    }


def _row(bench: Bench, direction: str, shape: Shape, forms: dict[str, Attention], known: Timings) -> None:
    """Measure and record one context; ``known`` is what was measured there, and gets what is found."""
    found = time_forms(bench, "contexts", shape, forms, (direction,))[direction]
    known |= found
    row = Row("contexts", shape, low_precision(bench), LIGHTNING, direction, found.get(LIGHTNING))
    if LIGHTNING in found:
        bench.add(row, "time", found[LIGHTNING].median, "ms")
    if LIGHTNING in found and SOFTMAX in found:
        goal = ">= 1" if shape.length >= LEAD[direction] else None
        bench.add(row, f"over {SOFTMAX}", found[SOFTMAX].median / found[LIGHTNING].median, "x", goal)
    exact = {who: timing for who, timing in found.items() if who != LIGHTNING}
    add_rates(bench, row, exact, flops(shape, direction), GOALS.get(direction) if shape.length >= AIM else None)
    if SOFTMAX in known:
        row = row._replace(implementation=SOFTMAX, timing=known[SOFTMAX])
        for who in sorted({"sdpa flash", "flex"} & set(found)):
            goal = ">= 1" if who == "sdpa flash" else None
            bench.add(row, f"over {who}", found[who].median / known[SOFTMAX].median, "x", goal)


def _leads(bench: Bench, row: Row, timings: dict[int, Timings]) -> None:
    """The shortest context from which on lightning is faster in every row: than our exact attention, than any."""
    for rivals, goal in (("ours", f"<= {LEAD[row.direction]}"), ("any", None)):
        first = None
        for length, found in sorted(timings.items(), reverse=True):
            others = [t.median for who, t in found.items() if who != LIGHTNING and (rivals == "any" or who == SOFTMAX)]
            if not others or LIGHTNING not in found:
                continue
            if min(others) <= found[LIGHTNING].median:
                break
            first = length
        if first is None:
            bench.note(f"lightning does not lead {rivals} exact attention at the longest context measured")
        else:
            bench.add(row._replace(name="lightning leads"), f"from, {rivals} exact", first, "tokens", goal)
