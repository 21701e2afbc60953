"""Block-sparse layouts on a GPU: against density x our dense time, and FlexAttention with the same blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import zoo_kernels
from kernel_bench.bench import Bench, Row, Shape
from kernel_bench.ceilings import matrix_rate
from kernel_bench.forms import DIRECTIONS, Timings, time_forms
from kernel_bench.inputs import Attention, low_precision
from kernel_bench.patterns import bigbird_blocks, layout_of, longformer_blocks
from kernel_bench.peers import add_flex
from kernel_bench.softmax import compare_to_dense, dense
from kernel_bench.timing import WallClock


class Pattern(NamedTuple):
    """A layout to build: ``near`` tokens of window and ``first`` global tokens, in blocks of ``block``."""

    name: str
    block: int
    near: int
    first: int
    random: int = 0

    def visible(self, length: int, heads: int) -> Tensor:
        """The blocks that each block of queries lists."""
        blocks, near, first = -(-length // self.block), self.near // self.block, self.first // self.block
        if not self.random:
            return longformer_blocks(blocks, near, first)
        return bigbird_blocks(blocks, heads, near, first, self.random // self.block)

    def __str__(self) -> str:
        return f"{self.name}, blocks of {self.block}"


def with_layout(bench: Bench, layout: Any) -> Attention:
    """This project's kernel over a layout."""
    attention = bench.ours(zoo_kernels.softmax_attention)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, layout=layout)

    return run


def sparse(bench: Bench, patterns: list[Pattern] | None = None) -> None:
    """Longformer- and BigBird-like layouts of about an eighth of the pairs."""
    shape = Shape(1, 60, 2, 16) if bench.dry else Shape(1, 32768, 16, 128)
    whole: dict[str, Timings] = {direction: {} for direction in DIRECTIONS}
    matrix_rate(bench)
    with bench.guard("dense"):
        whole |= dense(bench, shape)

    def run(pattern: Pattern) -> None:
        visible = pattern.visible(shape.length, shape.heads)
        layout = layout_of(visible, pattern.block, bench.device)
        _building(bench, pattern, shape, visible.to(bench.device))
        forms = {"ours": with_layout(bench, layout)}
        add_flex(bench, str(pattern), forms, lambda: layout.to_block_mask(shape.length))
        density = float(layout.density(shape.length))
        for direction, found in time_forms(bench, str(pattern), shape, forms).items():
            row = Row(str(pattern), shape, low_precision(bench), "", direction)
            compare_to_dense(bench, row, found, whole[direction], density, "<= 1.15")

    bench.each(patterns or _patterns(bench.dry), run)


def _patterns(dry: bool) -> list[Pattern]:
    if dry:
        return [Pattern("longformer", 16, 16, 16), Pattern("bigbird", 16, 16, 16, 16)]
    sizes = (128, 64)
    return [Pattern("longformer", n, 1536, 512) for n in sizes] + [Pattern("bigbird", n, 768, 512, 768) for n in sizes]


def _building(bench: Bench, pattern: Pattern, shape: Shape, visible: Tensor) -> None:
    """Host time to make a layout, the wait for the GPU included."""

    def build(_: int) -> None:
        layout_of(visible, pattern.block, bench.device)
        if bench.device.type == "cuda":
            torch.cuda.synchronize()

    timing = WallClock(rounds=1 if bench.dry else 5, seconds=1.0, least=0.0).measure({"ours": build})["ours"]
    row = Row(f"{pattern}, layout", shape, low_precision(bench), "ours", "forward", timing)
    bench.add(row, "time", timing.median, "ms")
