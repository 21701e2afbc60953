"""Mixer.reads: pairs of a query and a key, counted one by one or in whole blocks."""

from __future__ import annotations

import pytest
import torch

import zoo
from zoo.mixers.parts.costs import window_pairs
from zoo.mixers.parts.heads import HeadMixer

TOKENS = 150
BUILD = {"width": 32, "heads": 4, "depth": 2, "layer": 1}
MASKS = {  # options, and whether the query at t reads the key at j
    "window": ({"window": 20, "sink_tokens": 3}, lambda t, j: (t - j < 20) | (j < 3)),
    "longformer": ({"window": 9, "global_tokens": 5}, lambda t, j: (t - j < 9) | (j < 5)),
    "dilated": ({"kind": "window", "window": 6, "dilation": 4}, lambda t, j: ((t - j) % 4 == 0) & (t - j < 24)),
    "softmax": ({}, lambda t, j: t >= j),
}


def mask_of(rule):
    t = torch.arange(TOKENS)[:, None]
    return rule(t, t.T) & (t >= t.T)


@pytest.mark.parametrize("name", ["window", "longformer", "softmax"])
def test_pairs_are_those_of_the_mask(name):
    options, rule = MASKS[name]
    assert zoo.mixers.build(name, **BUILD, **options).reads(TOKENS) == mask_of(rule).sum()


@pytest.mark.parametrize("rates", [[1, 4], [1, 1, 1, 4]])
def test_pairs_are_a_mean_of_the_heads(rates):
    mixer = zoo.mixers.build("dilated", **BUILD, window=6, dilation=rates)
    near, far = mask_of(lambda t, j: t - j < 6).sum(), mask_of(MASKS["dilated"][1]).sum()
    ones = rates.count(1) / len(rates)
    assert mixer.reads(TOKENS) == pytest.approx(ones * near.item() + (1 - ones) * far.item())


@pytest.mark.parametrize("block", [2, 16, 64, 256])
@pytest.mark.parametrize(("window", "first"), [(1, 0), (20, 3), (64, 64), (65, 0), (33, 100), (1000, 1)])
def test_blocks_are_counted_whole_but_for_the_upper_half_of_the_diagonal(window, first, block):
    mask = mask_of(lambda t, j: (t - j < window) | (j < first))
    pairs = 0
    for start in range(0, TOKENS, block):
        rows = mask[start : start + block]
        earlier = sum(bool(rows[:, key : key + block].any()) for key in range(0, start, block))
        pairs += len(rows) * block * earlier + len(rows) * (len(rows) + 1) // 2
    assert window_pairs(TOKENS, window, first, block) == pairs


@pytest.mark.parametrize("options", [{"kind": "strided", "dilation": 8}, {"kind": "atrous"}, {"window": 12}], ids=str)
def test_blocks_of_residue_classes_hold_at_least_the_pairs(options):
    mixer = zoo.mixers.build("dilated", **BUILD, **options)
    assert mixer.reads(TOKENS) <= mixer.reads(TOKENS, 16) <= TOKENS * (TOKENS + 1) / 2


WITH_HEADS = [name for name in zoo.mixers.names() if issubclass(zoo.mixers.get(name), HeadMixer)]


@pytest.mark.parametrize("name", WITH_HEADS)
def test_reads_are_what_the_flops_of_mixing_are_made_of(name):
    mixer = zoo.mixers.build(name, **BUILD, value_dim=12)
    assert mixer.reads(TOKENS) * mixer.pair_flops == pytest.approx(mixer.mixing_flops(TOKENS) * TOKENS)
