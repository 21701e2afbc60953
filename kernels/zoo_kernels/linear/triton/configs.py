"""Tiles of the Triton kernels of linear attention by architecture, bytes of a number and width of the heads.

Every row is compiled by scripts/compile_kernels.py: none spills a register or asks for too much shared memory; those
of sm_80 take at most 99 KB, for consumer cards. Rows of 24, 120 or 248 are for widths that are no power of two, whose
masks take registers. Speeds were not measured yet. The heavy kernels are those with documents, a decay per token, the
gradient of the decay or an output wider than the inputs, which need more registers.
"""

from __future__ import annotations

from zoo_kernels.launch import INTERPRETER, Config, Table


def _mix(chunk: int, tile: int, warps: int, stages: int) -> Config:
    return Config({"CHUNK": chunk, "TILE": tile}, warps, stages)


def _states(chunk: int, tall: int, tile: int, warps: int, stages: int) -> Config:
    return Config({"CHUNK": chunk, "TILE_Y": tall, "TILE": tile}, warps, stages)


_SMALL = {(size, 256): _mix(32, 32, 4, 1) for size in (2, 4)}
_COMBINE = {(2, 256): Config({"TILE": 1024}, 4, 1), (4, 64): Config({"TILE": 1024}, 4, 1)}
_STEP = {(2, 256): Config({"TILE": 32}, 4, 1), (4, 64): Config({"TILE": 32}, 4, 1)}


def _channels(warps: int, **tiles: int) -> Config:
    return Config(tiles, warps, 1)


_ALL = ("sm_90", "sm_80", INTERPRETER)
_READ = {(2, 256): _channels(8, TILE_X=32, TILE=64), (4, 64): _channels(8, TILE_X=32, TILE=32)}
_CARRY = {(2, 256): _channels(8, TILE_Y=64, TILE=64), (4, 64): _channels(8, TILE_Y=32, TILE=32)}
_PAIRS = {(2, 256): _channels(8, BLOCK=16, TILE=64), (4, 64): _channels(8, BLOCK=16, TILE=32)}
_OF_PAIRS = {(2, 256): _channels(8, BLOCK=16, TILE=64), (4, 64): _channels(8, BLOCK=16, TILE=32)}
_OF_CHANNELS = {(2, 256): _channels(8, TILE=32, TILE_Z=32), (4, 64): _channels(8, TILE=16, TILE_Z=32)}

TABLE: Table = {
    "mix": {
        "sm_90": {
            (2, 32): _mix(64, 32, 4, 3),
            (2, 64): _mix(64, 64, 4, 3),
            (2, 120): _mix(64, 32, 8, 2),
            (2, 128): _mix(64, 64, 8, 2),
            (2, 256): _mix(64, 16, 8, 2),
            (4, 32): _mix(32, 32, 8, 1),
            (4, 64): _mix(32, 16, 8, 1),
        },
        "sm_80": {
            (2, 24): _mix(32, 32, 4, 3),
            (2, 32): _mix(64, 32, 4, 3),
            (2, 64): _mix(64, 32, 8, 2),
            (2, 128): _mix(32, 32, 8, 2),
            (2, 248): _mix(16, 16, 8, 2),
            (2, 256): _mix(16, 32, 8, 2),
            (4, 32): _mix(32, 32, 8, 1),
            (4, 64): _mix(32, 16, 8, 1),
        },
        INTERPRETER: _SMALL,
    },
    "mix_heavy": {
        "sm_90": {
            (2, 32): _mix(64, 32, 8, 1),
            (2, 64): _mix(64, 32, 8, 2),
            (2, 128): _mix(32, 16, 8, 2),
            (2, 248): _mix(16, 16, 8, 2),
            (2, 256): _mix(16, 16, 8, 1),
            (4, 32): _mix(32, 32, 8, 1),
            (4, 64): _mix(16, 16, 8, 1),
        },
        "sm_80": {
            (2, 32): _mix(64, 32, 8, 1),
            (2, 64): _mix(32, 32, 8, 2),
            (2, 120): _mix(32, 16, 8, 2),
            (2, 128): _mix(32, 32, 8, 2),
            (2, 256): _mix(16, 16, 8, 1),
            (4, 32): _mix(32, 32, 8, 1),
            (4, 64): _mix(16, 16, 8, 1),
        },
        INTERPRETER: _SMALL,
    },
    "states": {
        "sm_90": {
            (2, 32): _states(64, 32, 32, 4, 3),
            (2, 64): _states(64, 64, 64, 4, 3),
            (2, 128): _states(64, 128, 128, 8, 3),
            (2, 256): _states(64, 128, 128, 8, 3),
            (4, 32): _states(32, 32, 32, 8, 2),
            (4, 64): _states(32, 64, 32, 8, 2),
        },
        "sm_80": {
            (2, 32): _states(64, 32, 32, 4, 3),
            (2, 64): _states(64, 64, 64, 8, 2),
            (2, 128): _states(64, 128, 128, 8, 3),
            (2, 256): _states(64, 128, 128, 8, 2),
            (4, 32): _states(32, 32, 32, 8, 2),
            (4, 64): _states(32, 64, 32, 8, 2),
        },
        INTERPRETER: {(size, 256): _states(32, 32, 32, 4, 1) for size in (2, 4)},
    },
    "parallel": {
        "sm_90": {
            (2, 32): _mix(64, 32, 4, 3),
            (2, 64): _mix(64, 64, 4, 3),
            (2, 128): _mix(64, 64, 8, 3),
            (2, 256): _mix(64, 64, 8, 2),
            (4, 32): _mix(32, 32, 8, 1),
            (4, 64): _mix(16, 16, 8, 1),
        },
        "sm_80": {
            (2, 32): _mix(64, 32, 4, 3),
            (2, 64): _mix(64, 32, 4, 3),
            (2, 128): _mix(64, 32, 8, 1),
            (2, 256): _mix(64, 32, 8, 2),
            (4, 32): _mix(32, 32, 8, 1),
            (4, 64): _mix(16, 16, 8, 1),
        },
        INTERPRETER: _SMALL,
    },
    "parallel_heavy": {
        "sm_90": {
            (2, 32): _mix(64, 32, 8, 2),
            (2, 64): _mix(64, 32, 8, 2),
            (2, 128): _mix(64, 32, 8, 2),
            (2, 256): _mix(64, 32, 8, 2),
            (4, 32): _mix(32, 16, 8, 1),
            (4, 64): _mix(16, 16, 8, 1),
        },
        "sm_80": {
            (2, 32): _mix(64, 32, 8, 1),
            (2, 64): _mix(64, 32, 8, 1),
            (2, 128): _mix(32, 32, 8, 2),
            (2, 256): _mix(32, 16, 8, 1),
            (4, 32): _mix(32, 32, 8, 1),
            (4, 64): _mix(16, 16, 8, 1),
        },
        INTERPRETER: _SMALL,
    },
    "combine": dict.fromkeys(_ALL, _COMBINE),
    "step": dict.fromkeys(_ALL, _STEP),
    "channel_pairs": dict.fromkeys(_ALL, _PAIRS),
    "channel_states": dict.fromkeys(_ALL, _CARRY),
    "read": dict.fromkeys(_ALL, _READ),
    "pair_gradients": dict.fromkeys(_ALL, _OF_PAIRS),
    "channel_gradients": dict.fromkeys(_ALL, _OF_CHANNELS),
}
