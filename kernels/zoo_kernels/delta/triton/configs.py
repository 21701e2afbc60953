"""Tiles of the Triton kernels of delta attention by architecture, bytes of a number and width of the heads.

Every row is compiled by scripts/compile_kernels.py: none spills a register or asks for too much shared memory. Speeds
were not measured yet.
"""

from __future__ import annotations

from zoo_kernels.launch import INTERPRETER, Config, Table

CHUNK = 32  # tokens
LEVELS = CHUNK.bit_length() - 1  # of halves


def _tile(tile: int, warps: int = 4, stages: int = 1) -> Config:
    return Config({"TILE": tile}, warps, stages)


def _tiles(tall: int, tile: int, warps: int = 4, stages: int = 1) -> Config:
    return Config({"TILE_D": tall, "TILE": tile}, warps, stages)


def _rows(half: Config, single: Config) -> dict[tuple[int, int], Config]:
    return {(2, 256): half, (4, 64): single}


def _kernels(old: bool) -> dict[str, dict[tuple[int, int], Config]]:
    """Rows by kernel, of sm_80 if ``old``."""
    solve = Config({}, 4 if old else 8, 1)
    return {
        "pairs": _rows(_tile(32), _tile(32)),
        "pairs_channels": _rows(_tile(16, 8), _tile(16, 8)),
        "solve": _rows(solve, solve),
        "apply": _rows(_tile(64), _tile(32)),
        "walk": {(2, 64): _tile(32), (2, 128): _tile(16), (2, 256): _tile(16, 8), (4, 64): _tile(16)},
        "outputs": _rows(_tiles(16, 32, 8), _tiles(32, 32)),
        "through": _rows(_tiles(32, 32), _tiles(32, 32)),
        "gradients": _rows(_tiles(16, 32, 8 if old else 4), _tiles(16, 32)),
        "gradients_channels": _rows(_tiles(16, 16, 8), _tiles(16, 32, 8)),
        "delta_step": _rows(_tile(32), _tile(32)),
    }


_OF = {"sm_90": _kernels(old=False), "sm_80": _kernels(old=True), INTERPRETER: _kernels(old=False)}
TABLE: Table = {kernel: {name: rows[kernel] for name, rows in _OF.items()} for kernel in _OF[INTERPRETER]}
