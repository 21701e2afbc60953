"""Small Triton kernels that a check of compiled kernels must pass or refuse, and calls that launch them."""

import os

import torch
import triton
import triton.language as tl

from zoo_kernels.launch import Config, launch


@triton.jit(do_not_specialize=["length", "stride"])
def good(x, out, length: tl.int64, stride: tl.int64, TILE: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i, d = tl.arange(0, TILE), tl.arange(0, WIDTH)
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, length, TILE):
        rows = start + i
        tile = tl.load(
            x + row * stride + rows.to(tl.int64)[:, None] * WIDTH + d[None, :], mask=(rows < length)[:, None], other=0.0
        )
        total = tl.dot(tile, tl.trans(tile), total)
    tl.store(out + row * TILE * TILE + i[:, None] * TILE + i[None, :], total)


@triton.jit(
    do_not_specialize=["length"]
)  # loads are staged through shared memory only if the stride is known to be even
def large(x, out, length: tl.int64, stride: tl.int64, TILE: tl.constexpr, WIDTH: tl.constexpr):
    i, d = tl.arange(0, TILE), tl.arange(0, WIDTH)
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, length, WIDTH):
        first = tl.load(x + i.to(tl.int64)[:, None] * stride + (start + d)[None, :])
        second = tl.load(x + i.to(tl.int64)[None, :] * stride + (start + d)[:, None])
        total = tl.dot(first, second, total)
    tl.store(out + i[:, None] * TILE + i[None, :], total)


@triton.jit
def narrow(x, out, length, stride, TILE: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, TILE)
    tl.store(out + row * stride + i, tl.load(x + row * stride + i, mask=i < length))


@triton.jit
def half_narrow(x, out, length, stride, TILE: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, TILE)
    for start in range(0, length, TILE):
        value = tl.load(x + ((start + i) * stride).to(tl.int64))
        tl.store(out + row.to(tl.int64) * stride + i, value)


@triton.jit
def broken(x, out, length, stride, TILE: tl.constexpr, WIDTH: tl.constexpr):
    tl.store(out + tl.arange(0, TILE + 1), 0.0)


def __getattr__(name: str) -> object:
    if name == "crashing":  # stands for an abort inside the compiler
        os._exit(3)
    raise AttributeError(name)


def call(kernel, rows=2, length=64, tile=64, width=64, warps=4, stages=2):
    x = torch.empty(rows, length, width, dtype=torch.bfloat16)
    out = torch.empty(rows, tile, tile)
    config = Config({"TILE": tile}, warps, stages)
    launch(kernel, (rows,), x, out, length, x.stride(0), config=config, WIDTH=width)
