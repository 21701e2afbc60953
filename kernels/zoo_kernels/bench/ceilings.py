"""What the device can do at most, measured: bytes copied and products of matrices per second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.record import FORWARD, Row, Shape
from zoo_kernels.bench.registry import piece


def bandwidth(bench: Bench) -> float:
    """Bytes per second, read and written, of the largest copy inside the device's memory; measured once per piece."""
    if "copy" not in bench.ceilings:
        Ceiling("copy", bench.pick(10**9, 10**6)).run(bench)
    return bench.ceilings["copy"]


def matrix_rate(bench: Bench) -> float:
    """FLOPs per second of the product of two large matrices; the fastest that the piece measured."""
    if "product" not in bench.ceilings:
        Ceiling("product", bench.pick(8192, 64)).run(bench)
    return bench.ceilings["product"]


@dataclass(frozen=True)
class Ceiling:
    """A copy of ``size`` fp32 numbers, or the product of two square matrices of random numbers."""

    name: str
    size: int

    def __str__(self) -> str:
        return f"{self.name} {self.size}"

    def run(self, bench: Bench) -> None:
        """Measure; the fastest counts."""
        size, copies = self.size, self.name == "copy"
        dtype, shape = (torch.float32, (size,)) if copies else (bench.dtype, (size, size))
        a, b = (torch.randn(shape, device=bench.device, dtype=dtype) for _ in range(2))
        timing = bench.clock.measure({self.name: lambda i: b.copy_(a) if copies else a @ b})[self.name]
        rate = (8 * size if copies else 2 * size**3) / (timing.median / 1e3)
        row = Row(self.name, Shape(1, size, 1, 1 if copies else size), dtype, "torch", FORWARD, timing)
        metric, unit = ("bandwidth", "TB/s") if copies else ("rate", "TFLOP/s")
        bench.add(row, metric, rate / 1e12, unit)
        bench.ceilings[self.name] = max(rate, bench.ceilings.get(self.name, 0.0))


@piece("cuda", "ceilings")
def ceilings(bench: Bench) -> Iterator[Ceiling]:
    """The copy, and the product of two large bf16 matrices."""
    yield Ceiling("copy", bench.pick(10**9, 10**6))
    yield from (Ceiling("product", size) for size in bench.pick((4096, 8192, 16384), (64,)))
