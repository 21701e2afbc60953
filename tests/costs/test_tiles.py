"""Tiles fit, are the largest that do, and their traffic is what walking over them moves."""

from dataclasses import replace

import pytest

from zoo.costs.hardware import hardware_names, load_hardware
from zoo.costs.tile_sizes import ACCUMULATOR, POWERS, SHARE, linear_tile, softmax_tile

MACHINES = [load_hardware(name) for name in hardware_names()]


def fits(hardware, staged, accumulated):
    if hardware.registers is None:
        return staged + accumulated <= hardware.on_chip
    return staged <= hardware.on_chip and accumulated <= SHARE * hardware.registers


@pytest.mark.parametrize("hardware", MACHINES, ids=lambda h: h.name)
@pytest.mark.parametrize("width", [32, 64, 128, 256])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_softmax_tiles_fit_and_no_larger_one_does(hardware, width, size):
    def needs(rows, columns):
        return rows * width * size + 4 * columns * width * size, 4 * (rows * columns + rows * width)

    tile = softmax_tile(hardware, width, width, size, 4096)
    assert (tile.staged, tile.accumulated) == needs(tile.rows, tile.columns)
    assert fits(hardware, tile.staged, tile.accumulated)
    for rows in POWERS:
        for columns in POWERS:
            if rows * columns > tile.rows * tile.columns:
                assert not fits(hardware, *needs(rows, columns))


@pytest.mark.parametrize("hardware", MACHINES, ids=lambda h: h.name)
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_linear_tiles_fit(hardware, width):
    tile = linear_tile(hardware, width, width, 2, 4096)
    assert fits(hardware, tile.staged, tile.accumulated)
    assert tile.rows <= 2 * width and tile.columns <= width
    assert tile.staged == 2 * (2 * tile.rows * width + tile.rows * tile.columns) * 2
    assert tile.accumulated == ACCUMULATOR * (tile.rows**2 + tile.rows * tile.columns + width * tile.columns)


def test_known_proposals():
    h200 = load_hardware("h200")
    tile = softmax_tile(h200, 128, 128, 2, 32768)
    assert (tile.rows, tile.columns, tile.staged, tile.accumulated) == (128, 128, 160 * 1024, 128 * 1024)
    chunk = linear_tile(h200, 128, 128, 2, 32768)
    assert (chunk.rows, chunk.columns) == (64, 128)


@pytest.mark.parametrize("value", [64, 128])
def test_traffic_is_that_of_a_walk_over_the_tiles(value):
    hardware, width, context = load_hardware("h200"), 64, 1000
    tile = softmax_tile(hardware, width, value, 2, context)
    moved = 0
    for start in range(0, context, tile.rows):
        stop = min(start + tile.rows, context)
        moved += (stop - start) * (width + value) * 2 + stop * (width + value) * 2  # Q, O; K, V up to the last query
    assert tile.traffic == moved
    assert tile.flops == 2 * (width + value) * sum(range(1, context + 1))
    chunk = linear_tile(hardware, width, width, 2, context)
    chunks = -(-context // chunk.rows)
    assert chunk.columns == width
    assert chunk.traffic == (2 + 4) * context * width * 2 + 2 * chunks * width * width * 4  # K V; Q K V O; states


def test_short_sequences_and_memories_that_are_too_small():
    hardware = load_hardware("edge_npu")
    assert softmax_tile(hardware, 64, 64, 2, 20).rows == 16
    assert softmax_tile(replace(hardware, on_chip=1024), 64, 64, 2, 4096) is None
    assert linear_tile(replace(hardware, on_chip=1024), 64, 64, 2, 4096) is None
    big, small = (softmax_tile(replace(hardware, on_chip=n), 64, 64, 2, 4096) for n in (2**20, 2**16))
    assert big.rows * big.columns > small.rows * small.columns and big.traffic < small.traffic
