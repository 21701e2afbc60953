"""Tiles of the Triton kernels of the short convolution: TIME tokens and TILE channels of a program at a time.

Nothing depends on the number of channels, which is cut into tiles; a row serves any. SPAN blocks of tokens share one
sum for the gradients of weights.
"""

from __future__ import annotations

from zoo_kernels.launch import ARCHITECTURES, INTERPRETER, Config, Table

ANY = 1 << 20  # channels

_ALL = (*ARCHITECTURES, INTERPRETER)
_FORWARD = {(size, ANY): Config({"TIME": 32, "TILE": 64}, 4, 1) for size in (2, 4)}
_BACKWARD = {(size, ANY): Config({"TIME": 16, "TILE": 64, "SPAN": 32}, 8, 1) for size in (2, 4)}

TABLE: Table = {
    "convolution": dict.fromkeys(_ALL, _FORWARD),
    "convolution_gradients": dict.fromkeys(_ALL, _BACKWARD),
}
