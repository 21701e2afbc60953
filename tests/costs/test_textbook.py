"""Textbook answers, from the closed forms and from the mixers themselves."""

import pytest
import torch

import zoo
from zoo.costs.textbook import (
    causal_bigbird,
    causal_window_layers,
    encoder_bigbird,
    encoder_window_layers,
    kv_cache_bytes,
    textbook,
)

MIB = 2**20


@pytest.mark.parametrize(("kv_heads", "mib"), [(32, 128), (8, 32), (1, 4)])
def test_cache_of_a_layer(kv_heads, mib):
    assert kv_cache_bytes(kv_heads, 128, 1024, batch=8, size=2) == mib * MIB
    with torch.device("meta"):
        mixer = zoo.mixers.build("softmax", width=4096, heads=32, kv_heads=kv_heads)
    assert 8 * mixer.cost(1024, torch.float16).cache_bytes == mib * MIB


def test_encoder_bigbird():
    links = encoder_bigbird(512, window=3, random=2, globals=2)
    assert links.per_token == 13
    assert round(100 * links.sparsity, 1) == 97.5


def test_causal_bigbird_counts_the_pairs_of_a_mask():
    context, window, random, globals = 96, 3, 2, 2
    links = causal_bigbird(context, window, random, globals)
    assert links.per_token == window + 1 + random + globals
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(context, context, dtype=torch.bool)
    for t in range(context):
        mask[t, max(0, t - window) : t + 1] = True
        mask[t, : min(globals, t + 1)] = True
        free = (~mask[t, : t + 1]).nonzero().flatten()
        mask[t, free[torch.randperm(len(free), generator=generator)[:random]]] = True
    assert links.sparsity == pytest.approx(1 - mask.sum().item() / (context * (context + 1) / 2), abs=1e-12)


def test_window_layers():
    assert encoder_window_layers(1024, 32) == 16
    assert causal_window_layers(1024, 32) == 33
    assert causal_window_layers(1023, 32) == 33
    assert causal_window_layers(33 * 31 + 1, 32) == 33
    assert causal_window_layers(33 * 31 + 2, 32) == 34
    with pytest.raises(ValueError, match="joins nothing"):
        causal_window_layers(10, 1)


@pytest.mark.parametrize(("context", "window"), [(40, 4), (31, 7), (12, 12)])
def test_window_layers_are_those_that_join_a_mask(context, window):
    time = torch.arange(context)
    causal = ((time[:, None] - time >= 0) & (time[:, None] - time < window)).double()
    both = ((time[:, None] - time).abs() <= window).double()
    middle = context // 2

    def layers(mask, met):
        count, reach = 0, torch.eye(context, dtype=torch.float64)
        while not met(reach):
            reach, count = (mask @ reach > 0).double(), count + 1
        return count

    assert layers(causal, lambda reach: reach[-1, 0] > 0) == causal_window_layers(context, window)
    if context % 2:
        assert layers(both, lambda reach: reach[middle].all()) == encoder_window_layers(context, window)


def test_every_answer_says_which_case_it_is():
    assert all(question.startswith(("causal:", "encoder:")) for question, _ in textbook())
    text = dict(textbook())
    assert list(text.values()) == [
        "128 MiB", "32 MiB", "4 MiB", "13, 97.5 % sparse", "8, 96.9 % sparse", "16 layers", "33 layers",
    ]  # fmt: skip
