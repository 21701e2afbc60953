"""A mixer with weights and inputs of a simple rule, whose outputs are written as data in the tests.

The data was computed token by token with plain Python loops and math.fsum, apart from any code of this repository.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import zoo
from zoo.mixers.parts.random_features import RandomProjection

WIDTH, HEADS, LENGTH = 8, 2, 5
ROWS = (1, 4)  # tokens whose outputs are written down
SEEDS = {
    "query": 1,
    "key": 2,
    "value": 3,
    "gate.weight": 4,
    "out": 5,
    "decay.projection": 6,
    "forget.projection": 6,
}


def golden_weight(rows: int, columns: int, seed: int) -> Tensor:
    """A matrix in fp64."""
    i, j = torch.arange(rows)[:, None], torch.arange(columns)
    return (((3 * i + 5 * j + 7 * seed + i * j) % 13 - 6) / 8).double()


def golden_mixer(name: str, **options: Any) -> zoo.mixers.Mixer:
    """In fp64; what is no matrix keeps its initial value, but random features are replaced."""
    mixer = zoo.mixers.build(name, width=WIDTH, heads=HEADS, **options).double()
    for part, module in mixer.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = golden_weight(*module.weight.shape, SEEDS[part])
        elif isinstance(module, RandomProjection):
            h, f, d = (torch.arange(n) for n in module.bits.shape)
            h, f = h[:, None, None], f[:, None]
            module.bits.copy_((((3 * h + 5 * f + 7 * d + f * d) % 13 - 6) / 4).float().view(torch.int32))
    return mixer


def golden_inputs() -> Tensor:
    """``(1, T, C)``."""
    t, c = torch.arange(LENGTH)[:, None], torch.arange(WIDTH)
    return (((5 * t + 2 * c + t * c) % 11 - 5) / 4).double()[None]


def assert_golden(mixer: zoo.mixers.Mixer, want: list[list[float]], tolerance: float = 1e-10) -> None:
    """Outputs of the tokens ``ROWS``, both from the whole sequence and token by token."""
    x = golden_inputs()
    cache = mixer.new_cache(1, dtype=torch.float64)
    with torch.no_grad():
        stepped = torch.cat([mixer(token, cache=cache) for token in x.split(1, 1)], 1)
    for y in (mixer(x), stepped):
        got = y[0, list(ROWS)]
        torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64), rtol=tolerance, atol=tolerance)
