"""Tiles of the Triton kernels of softmax attention, by GPU, bytes of a number and head width.

No row spills a register and all take at most 99 KB (sm_80, for consumer cards) or 227 KB (sm_90) of shared memory;
scripts/compile_kernels.py shows that. Rows of 32, 120 or 248 are for widths that are no power of two, whose masks take
registers. Speeds were not measured yet.
"""

from __future__ import annotations

from zoo_kernels.launch import INTERPRETER, Config, Table

_HALF, _FULL = 2, 4


def _tiles(queries: int, keys: int, warps: int, stages: int) -> Config:
    return Config({"QUERIES": queries, "KEYS": keys}, warps, stages)


_INTERPRETED = {(_HALF, 256): _tiles(32, 16, 4, 1), (_FULL, 256): _tiles(16, 32, 4, 1)}


def _decode(keys: int, warps: int, stages: int) -> Config:
    return Config({"KEYS": keys}, warps, stages)


_MERGED = {(_FULL, 64): Config({"SPLITS": 32}, 4, 2), (_HALF, 256): Config({"SPLITS": 32}, 4, 2)}
_DECODED = {
    (_HALF, 64): _decode(128, 4, 3),
    (_HALF, 128): _decode(64, 4, 3),
    (_HALF, 256): _decode(32, 4, 3),
    (_FULL, 64): _decode(32, 4, 3),
}

_FORWARD: dict[str, dict[tuple[int, int], Config]] = {
    "sm_90": {
        (_HALF, 64): _tiles(128, 128, 8, 3),
        (_HALF, 128): _tiles(128, 64, 8, 3),
        (_HALF, 256): _tiles(128, 32, 8, 2),
        (_FULL, 64): _tiles(32, 32, 8, 1),
    },
    "sm_80": {
        (_HALF, 64): _tiles(128, 64, 8, 2),
        (_HALF, 120): _tiles(64, 32, 8, 2),
        (_HALF, 128): _tiles(128, 32, 8, 2),
        (_HALF, 256): _tiles(64, 32, 8, 2),
        (_FULL, 64): _tiles(32, 32, 8, 1),
    },
    INTERPRETER: _INTERPRETED,
}
_KEY_GRADIENT: dict[str, dict[tuple[int, int], Config]] = {
    "sm_90": {
        (_HALF, 64): _tiles(32, 128, 8, 2),
        (_HALF, 128): _tiles(32, 128, 8, 2),
        (_HALF, 256): _tiles(32, 32, 8, 2),
        (_FULL, 64): _tiles(16, 32, 4, 1),
    },
    "sm_80": {
        (_HALF, 64): _tiles(32, 64, 8, 2),
        (_HALF, 128): _tiles(32, 64, 8, 1),
        (_HALF, 256): _tiles(16, 32, 8, 1),
        (_FULL, 64): _tiles(16, 32, 4, 1),
    },
    INTERPRETER: _INTERPRETED,
}

_QUERY_GRADIENT = {
    "sm_90": {
        (_HALF, 64): _tiles(128, 64, 8, 3),
        (_HALF, 128): _tiles(128, 64, 8, 2),
        (_HALF, 248): _tiles(64, 16, 8, 2),
        (_HALF, 256): _tiles(64, 32, 8, 2),
        (_FULL, 64): _tiles(32, 32, 4, 2),
    },
    "sm_80": {
        (_HALF, 32): _tiles(64, 32, 4, 2),
        (_HALF, 64): _tiles(128, 32, 8, 2),
        (_HALF, 128): _tiles(64, 32, 4, 2),
        (_HALF, 256): _tiles(32, 32, 8, 1),
        (_FULL, 64): _tiles(16, 32, 4, 1),
    },
    INTERPRETER: _INTERPRETED,
}

TABLE: Table = {
    "forward": _FORWARD,
    "forward_listed": {  # of a layout: what its bit masks take leaves fewer registers
        **_FORWARD,
        "sm_90": {
            **_FORWARD["sm_90"],
            (_HALF, 64): _tiles(128, 64, 8, 3),
            (_HALF, 256): _tiles(64, 32, 8, 2),
            (_FULL, 64): _tiles(16, 16, 4, 1),
        },
        "sm_80": {**_FORWARD["sm_80"], (_FULL, 64): _tiles(16, 16, 4, 1)},
    },
    "key_gradient": _KEY_GRADIENT,
    "key_gradient_listed": {
        **_KEY_GRADIENT,
        "sm_90": {**_KEY_GRADIENT["sm_90"], (_HALF, 128): _tiles(16, 128, 8, 2)},
        "sm_80": {**_KEY_GRADIENT["sm_80"], (_FULL, 64): _tiles(16, 16, 4, 1)},
    },
    "query_gradient": _QUERY_GRADIENT,
    "query_gradient_listed": {
        **_QUERY_GRADIENT,
        "sm_80": {**_QUERY_GRADIENT["sm_80"], (_HALF, 64): _tiles(128, 32, 8, 1)},
    },
    "decode": {
        "sm_90": _DECODED,
        "sm_80": _DECODED,
        INTERPRETER: {(_HALF, 256): _decode(16, 4, 1), (_FULL, 256): _decode(16, 4, 1)},
    },
    "merge": {
        "sm_90": _MERGED,
        "sm_80": _MERGED,
        INTERPRETER: {(s, 256): Config({"SPLITS": 4}, 4, 1) for s in (_HALF, _FULL)},
    },
}
