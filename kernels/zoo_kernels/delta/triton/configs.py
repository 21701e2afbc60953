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


def _everywhere(half: Config, single: Config) -> dict[str, dict[tuple[int, int], Config]]:
    return {key: {(2, 256): half, (4, 64): single} for key in ("sm_90", "sm_80", INTERPRETER)}


TABLE: Table = {
    "pairs": _everywhere(_tile(32), _tile(32)),
    "pairs_channels": _everywhere(_tile(16), _tile(16)),
    "solve": _everywhere(Config({}, 4, 1), Config({}, 4, 1)),
    "apply": _everywhere(_tile(64), _tile(32)),
    "walk": _everywhere(_tile(32), _tile(16)),
    "outputs": _everywhere(_tiles(32, 64), _tiles(32, 32)),
    "through": _everywhere(_tiles(32, 32), _tiles(32, 32)),
    "gradients": _everywhere(_tiles(32, 32), _tiles(32, 32)),
    "gradients_channels": _everywhere(_tiles(16, 32, 8), _tiles(16, 32, 8)),
    "delta_step": _everywhere(_tile(32), _tile(32)),
}
