"""Rotary tables: right angles far out, and the same numbers however a sequence is split."""

from __future__ import annotations

import math

import pytest
import torch

import zoo
from zoo.mixers.parts.positions import Rotary, rotary_table, rotate, turn


@pytest.mark.parametrize("theta", [10.0, 10000.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_are_right_to_the_rounding_of_the_table_up_to_a_million_tokens(theta, dtype):
    positions = [0, 1, 63, 4097, 131_071, 999_983, 1_000_000]
    table = rotary_table(torch.tensor([positions]), theta, 64, dtype)
    assert table.shape == (1, 7, 1, 32, 2) and table.dtype == dtype
    for row, position in enumerate(positions):
        for pair in range(32):
            angle = position * theta ** (-2 * pair / 64)
            want = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
            tolerance = 2**-24 if dtype == torch.float32 else 1e-9
            torch.testing.assert_close(table[0, row, 0, pair].double(), want, rtol=0, atol=tolerance)


@pytest.mark.parametrize("pieces", [[1] * 100, [64, 1, 35], [3, 97]], ids=str)
def test_a_table_is_the_same_to_the_bit_however_a_sequence_is_split(pieces):
    positions = torch.arange(900_000, 900_100)[None]
    whole = rotary_table(positions, 10000.0, 24, torch.float32)
    parts = [rotary_table(piece, 10000.0, 24, torch.float32) for piece in positions.split(pieces, 1)]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_what_lies_behind_the_table_is_not_turned():
    x, positions = torch.randn(2, 5, 3, 10), torch.arange(5)[None]
    y = turn(x, rotary_table(positions, 100.0, 4, torch.float32))
    assert torch.equal(y[..., 4:], x[..., 4:])
    assert torch.equal(y[..., :4], rotate(x[..., :4].contiguous(), positions, 100.0))


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 6), (torch.bfloat16, 8)])
def test_the_real_products_of_a_compiled_graph_are_those_of_eager_mode(dtype, width):
    x = torch.randn(2, 7, 3, 8, dtype=dtype, requires_grad=True)
    table = rotary_table(torch.arange(7)[None] + 5, 100.0, width, torch.promote_types(dtype, torch.float32))
    results = []
    for function in (turn, torch.compile(turn, backend="aot_eager", fullgraph=True)):
        y = function(x, table)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager)


def test_a_graph_has_no_complex_numbers():
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    x = torch.randn(1, 5, 2, 8)
    torch.compile(lambda y: rotate(y, torch.arange(5)[None], 100.0), backend=keep, fullgraph=True)(x)
    assert len(graphs) == 1 and "cos" in graphs[0].code and "complex" not in graphs[0].code


def test_a_table_is_made_once_for_each_base_and_width():
    rotary = Rotary(torch.arange(5)[None], torch.float32)
    assert rotary.table(100.0, 8) is rotary.table(100.0, 8)
    assert rotary.table(100.0, 4).shape[-2] == 2 and not torch.equal(rotary.table(10.0, 8), rotary.table(100.0, 8))


def test_a_mixer_by_itself_is_the_mixer_with_a_carry():
    mixer, x = zoo.mixers.build("softmax", width=32, heads=4), torch.randn(2, 9, 32)
    carry = {}
    mixer.prepare(carry, x)
    assert torch.equal(mixer(x, carry=carry), mixer(x))
