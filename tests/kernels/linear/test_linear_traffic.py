"""Bytes that the Triton kernels of linear attention move, counted from their grids and arguments."""

from __future__ import annotations

import inspect

import pytest
import torch

from zoo_kernels import linear_attention
from zoo_kernels.launch import Launch, record

pytest.importorskip("triton")

WIDTH = 128


def size(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def traffic(launch: Launch) -> tuple[int, int]:
    """Bytes of arrays and of states that one launch reads and writes; column tiles of a segment share the cache."""
    x = dict(zip(inspect.signature(launch.kernel.fn).parameters, launch.arguments))
    if "states" not in x:  # mix: every program goes once through its segment and starts from one state
        states = launch.grid[0] // launch.constants["TILES"] * size(x["starts"][0, 0, 0])
        states += size(x["final"]) * launch.constants["FINAL"]
        return sum(size(x[name]) for name in ("x", "y", "z", "out")), states
    if "y" not in x:  # combine: each state read and written, one more at either end
        return 0, 2 * size(x["states"]) + size(x["initial"]) + size(x["final"])
    tokens = sum(min(x["segment"], x["T"] - (n + x["skip"]) * x["segment"]) for n in range(x["segments"]))
    return (size(x["y"]) + size(x["z"])) * tokens // x["T"], size(x["states"])


def moved(batch: int, length: int, heads: int) -> tuple[list[float], int]:
    """Traffic over the least of forward and backward, both with and without the states, and the number of segments."""
    with record("sm_90") as launches:
        q, k, v, up = (torch.empty(batch, length, heads, WIDTH, dtype=torch.bfloat16) for _ in range(4))
        leaves = [x.requires_grad_() for x in (q, k, v)]
        o, _ = linear_attention(*leaves, -torch.ones(heads), backend="triton")
        forward = list(launches)
        torch.autograd.grad(o, leaves, up)
    least, ratios = size(q), []
    for part, arrays in ((forward, 4), (launches[len(forward) :], 7)):
        counts = [traffic(launch) for launch in part]
        ratios += [sum(a + s for a, s in counts) / (arrays * least), sum(a for a, _ in counts) / (arrays * least)]
    programs = launches[len(forward) - 1]
    return ratios, programs.grid[0] // (programs.constants["TILES"] * batch * heads)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "segments"),
    [(8, 2048, 32, 1), (2, 16384, 16, 4), (1, 65536, 8, 9), (1, 32768, 16, 6), (1, 131072, 16, 9)],
)
def test_traffic_stays_close_to_the_least(batch, length, heads, segments):
    ratios, cut = moved(batch, length, heads)
    assert cut == segments
    assert max(ratios[:2]) <= 1.5
    assert max(ratios[2:]) <= 2.0


def test_a_short_sequence_of_few_heads_fills_the_gpu_first():
    ratios, cut = moved(1, 8192, 8)
    assert cut * 8 * WIDTH // 64 >= 128, "programs"
    assert ratios[1] <= 1.5
    assert ratios[3] <= 2.0
    assert max(ratios) <= 2.3, "the states, which fit the cache of the GPU"
