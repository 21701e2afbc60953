"""Tiles of the Triton kernels of linear attention by architecture, bytes of a number and width of the heads.

Every row is compiled by scripts/compile_kernels.py: none may spill a register or ask for too much shared memory.
"""

from __future__ import annotations

from kernels.launch import Config, Table


def _mix(chunk: int, tile: int, warps: int, stages: int) -> Config:
    return Config({"CHUNK": chunk, "TILE": tile}, warps, stages)


def _states(chunk: int, tall: int, tile: int, warps: int, stages: int) -> Config:
    return Config({"CHUNK": chunk, "TILE_Y": tall, "TILE": tile}, warps, stages)


_HOPPER = {
    (2, 32): _mix(64, 32, 4, 2),
    (2, 64): _mix(64, 64, 4, 2),
    (2, 128): _mix(64, 64, 8, 2),
    (2, 256): _mix(64, 32, 8, 2),
    (4, 32): _mix(32, 32, 4, 2),
    (4, 64): _mix(32, 32, 4, 2),
    (4, 128): _mix(32, 16, 8, 2),
    (4, 256): _mix(16, 16, 8, 1),
}
_STATES = {
    (2, 32): _states(64, 32, 32, 4, 2),
    (2, 64): _states(64, 64, 64, 4, 2),
    (2, 128): _states(64, 128, 128, 8, 2),
    (2, 256): _states(64, 128, 128, 8, 2),
    (4, 32): _states(32, 32, 32, 4, 2),
    (4, 64): _states(32, 64, 32, 4, 2),
    (4, 128): _states(32, 64, 32, 4, 2),
    (4, 256): _states(32, 64, 32, 4, 2),
}
_COMBINE = {(size, width): Config({"TILE": 1024}, 4, 1) for size in (2, 4) for width in (64, 256)}
_STEP = {(size, width): Config({"TILE": 32}, 4, 1) for size in (2, 4) for width in (64, 128, 256)}
_SMALL = {(size, 256): _mix(32, 32, 4, 1) for size in (2, 4)}

TABLE: Table = {
    "mix": {"sm_90": _HOPPER, "sm_80": _HOPPER, "interpreter": _SMALL},
    "mix_heavy": {"sm_90": _HOPPER, "sm_80": _HOPPER, "interpreter": _SMALL},
    "parallel_heavy": {"sm_90": _HOPPER, "sm_80": _HOPPER, "interpreter": _SMALL},
    "parallel": {"sm_90": _HOPPER, "sm_80": _HOPPER, "interpreter": _SMALL},
    "states": {
        "sm_90": _STATES,
        "sm_80": _STATES,
        "interpreter": {(size, 256): _states(32, 32, 32, 4, 1) for size in (2, 4)},
    },
    "combine": dict.fromkeys(("sm_90", "sm_80", "interpreter"), _COMBINE),
    "step": dict.fromkeys(("sm_90", "sm_80", "interpreter"), _STEP),
}
