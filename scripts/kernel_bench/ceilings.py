"""What the GPU can do at most, measured: bytes copied and products of matrices per second."""

from __future__ import annotations

import torch

from kernel_bench.bench import Bench, Row, Shape
from kernel_bench.inputs import low_precision


def bandwidth(bench: Bench) -> float:
    """Bytes per second, read and written, of the largest copy inside the device's memory; measured once per piece."""
    if bench.bandwidth is None:
        numbers = 10**6 if bench.dry else 10**9
        source = torch.randn(numbers, device=bench.device)
        target = torch.empty_like(source)
        timing = bench.timer.measure({"copy": lambda i: target.copy_(source)})["copy"]
        bench.bandwidth = 8 * numbers / (timing.median / 1e3)
        row = Row("copy", Shape(1, numbers, 1, 1), torch.float32, "torch", "forward", timing)
        bench.add(row, "bandwidth", bench.bandwidth / 1e12, "TB/s")
    return bench.bandwidth


def matrix_rate(bench: Bench) -> float:
    """FLOPs per second of the product of two large matrices; the fastest that the piece measured."""
    return bench.matrix_rate or _product(bench, 64 if bench.dry else 8192)


def ceilings(bench: Bench) -> None:
    """The copy, and the product of two large bf16 matrices of random numbers."""
    bench.each(["copy"], lambda _: bandwidth(bench))
    bench.each([64] if bench.dry else [4096, 8192, 16384], lambda n: _product(bench, n), lambda n: f"product {n}")


def _product(bench: Bench, size: int) -> float:
    dtype = low_precision(bench)
    a, b = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
    timing = bench.timer.measure({"product": lambda i: a @ b})["product"]
    rate = 2 * size**3 / (timing.median / 1e3)
    row = Row("product", Shape(1, size, 1, size), dtype, "torch", "forward", timing)
    bench.add(row, "rate", rate / 1e12, "TFLOP/s")
    bench.matrix_rate = max(rate, bench.matrix_rate or 0.0)
    return bench.matrix_rate
