"""Sparse attentions never touch what is out of their reach: a NaN there would reach the result through any product."""

from __future__ import annotations

import pytest
import torch

from zoo.mixers import build
from zoo.mixers.parts.call import Call

TOKENS, POISONED = 2048, 64
TILE = 64  # what is out of reach by less can lie in one tile with what is not
CASES = {
    "window": ("window", {"window": 32, "sink_tokens": 0}, 32),
    "dilated": ("dilated", {"window": 16, "dilation": [1, 4]}, 61),
    "longformer": ("longformer", {"window": 32, "global_tokens": 0}, 32),
    "longformer, dilated": ("longformer", {"window": 16, "global_tokens": 0, "dilation": [1, 3]}, 46),
    "bigbird": ("bigbird", {"block": 16, "window_blocks": 2, "random_blocks": 0, "global_blocks": 0}, 32),
    "adaptive": ("adaptive", {"full_below": 128, "window_below": 4096, "block": 16, "window_blocks": 2}, 64),
    "learned_sparse": ("learned_sparse", {"block": 16, "top_k": 2, "reach": 6, "global_blocks": 0, "frozen": True}, 96),
    "window_linear": ("window_linear", {"local_heads": 4, "window": 32}, 32),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["strips", "tiles"])
@pytest.mark.parametrize(("name", "options", "reach"), CASES.values(), ids=CASES)
def test_nothing_out_of_reach_is_read(name, options, reach, dtype):
    """Of the first keys and values, in the forward pass and in the gradients of later outputs."""
    torch.manual_seed(0)
    mixer = build(name, width=32, heads=4, **options).to(dtype)
    q, k, v = (torch.randn(1, TOKENS, 4, 8, dtype=dtype) for _ in range(3))
    k[:, :POISONED] = v[:, :POISONED] = float("nan")
    leaves = [x.requires_grad_() for x in (q, k, v)]
    x = torch.zeros(1, TOKENS, 32, dtype=dtype)
    y = mixer.mix(*leaves, Call(x, torch.arange(TOKENS)[None], None, None, None, None))
    spoiled = y.isnan().flatten(2).any(-1)[0]
    assert spoiled[:POISONED].all(), "the NaN are seen where they can be"
    clean = POISONED + reach + TILE
    assert not spoiled[clean:].any()
    for grad in torch.autograd.grad(y[:, TOKENS // 2 :].sum(), leaves):
        assert grad[:, clean:].isfinite().all()
