"""The closed forms of cost() against what is measured.

FLOPs of matrix products are counted by FlopCounterMode. It sees no fused kernel, so the training pass is run with one
document, which the plain backend computes with ordinary products. Such products also compute the pairs above the
diagonal that are masked away afterwards and that cost() leaves out; so cost() lies between the projections and the
count. The exact number of pairs is tested for each family in tests/mixers.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.conformance.cases import WIDTH, draw, every_mixer, make, states, tensors

CONTEXTS = (1, 7, 64, 128, 192)


def projection_flops(mixer: nn.Module) -> int:
    """FLOPs of one token in every linear layer."""
    return sum(2 * m.weight.numel() for m in mixer.modules() if isinstance(m, nn.Linear))


@every_mixer
@pytest.mark.parametrize("heads", [1, 4])
def test_parameters(name, options, heads):
    mixer = make(name, options | ({"kv_heads": 1} if "kv_heads" in options else {}), heads=heads)
    assert mixer.cost(100).parameters == sum(p.numel() for p in mixer.parameters() if p.requires_grad)


@every_mixer
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_cache_bytes(name, options, context, dtype):
    """Counted on the tensors themselves; a cache that was allocated at once holds no more than it needs."""
    mixer = make(name, options).to(dtype)
    cache = mixer.new_cache(1, capacity=context, dtype=dtype)
    with torch.no_grad():
        mixer(draw(1, context, dtype), cache=cache)
    held = sum(t.nbytes for t in tensors(cache) if t.is_floating_point())
    assert held == cache.nbytes() == mixer.cost(context, dtype).cache_bytes


@every_mixer
def test_cache_bytes_of_a_batch_are_those_of_its_rows(name, options):
    mixer = make(name, options).float()
    cache = mixer.new_cache(3, dtype=torch.float32)
    with torch.no_grad():
        for piece in draw(3, 20, torch.float32).split([15, 1, 1, 3], 1):
            mixer(piece, cache=cache)
    assert cache.nbytes() == 3 * mixer.cost(20, torch.float32).cache_bytes


@every_mixer
@pytest.mark.parametrize("context", CONTEXTS)
def test_training_flops_lie_between_the_projections_and_the_dense_count(name, options, context):
    mixer, x = make(name, options), draw(1, context)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mixer(x, documents=torch.zeros(1, context, dtype=torch.long))
    claimed = mixer.cost(context).flops_per_token * context
    assert projection_flops(mixer) * context < claimed <= counter.get_total_flops()


@every_mixer
@pytest.mark.parametrize("context", CONTEXTS)
def test_decode_flops(name, options, context):
    """Counted products, and two FLOPs for each number of a state: its update is no product."""
    mixer, x = make(name, options), draw(1, context + 1)
    cache = mixer.new_cache(1, dtype=torch.float64)
    with torch.no_grad():
        mixer(x[:, :-1], cache=cache)
        with FlopCounterMode(display=False) as counter:
            mixer(x[:, -1:], cache=cache)
    update = 2 * sum(t.numel() for state in states(cache) for t in tensors(state) if t.is_floating_point())
    assert mixer.cost(context).decode_flops_per_token == counter.get_total_flops() + update


@every_mixer
def test_costs_of_layers_add_up(name, options):
    cost = make(name, options).cost(50)
    total = cost + cost
    assert (total.parameters, total.cache_bytes) == (2 * cost.parameters, 2 * cost.cache_bytes)
    assert total.flops_per_token == 2 * cost.flops_per_token
    assert total.decode_flops_per_token == 2 * cost.decode_flops_per_token
    assert cost.flops_per_token > 2 * WIDTH
