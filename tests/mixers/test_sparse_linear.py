"""BigBird's blocks blended with linear attention: all pairs by the formulas, and both extremes."""

from __future__ import annotations

import pytest
import torch

from tests.mixers.blend_oracle import assert_same, build, draw, oracle, stepped, window_rule

LENGTH = 150  # ten blocks of 16, the last one short


def listed_pairs(mixer):
    """``(H, T, T)``: True where the query reads the key, from the lists of blocks alone."""
    lists = mixer.parts[0].pattern.lists(torch.arange(-(-LENGTH // 16)))
    near = torch.zeros(len(lists), LENGTH, LENGTH, dtype=torch.bool)
    for head, rows in enumerate(lists.tolist()):
        for query, blocks in enumerate(rows):
            for block in (b for b in blocks if b >= 0):
                near[head, 16 * query : 16 * query + 16, 16 * block : 16 * block + 16] = True
    return near & window_rule(LENGTH, LENGTH)


@pytest.mark.parametrize("mode", ["heads", "gate"])
@pytest.mark.parametrize("feature_map", ["elu+1", "taylor", "hedgehog"])
@pytest.mark.parametrize("blocks", [(1, 0, 0), (2, 1, 1), (1, 2, 0)], ids=str)
def test_equals_the_weights_of_all_pairs(mode, feature_map, blocks):
    window_blocks, random_blocks, global_blocks = blocks
    options = {"window_blocks": window_blocks, "random_blocks": random_blocks, "global_blocks": global_blocks}
    options |= {"mode": mode, "feature_map": feature_map}
    mixer = build("sparse_linear", block=16, rope_theta=None, **options)
    x = draw(2, LENGTH, 32).requires_grad_()
    near = listed_pairs(mixer)
    assert near.any(-1).all()
    assert not near[:, 100, :80].all()
    if mode == "heads" and len(near) > 1:  # the others are linear: any list will do
        near = torch.cat([near, near])
    y, want, leaves = mixer(x), oracle(mixer, x, mode, feature_map, near), [x, *mixer.parameters()]
    assert_same(y, want)
    weight = draw(*y.shape)
    for ours, theirs in zip(*(torch.autograd.grad((o * weight).sum(), leaves) for o in (y, want))):
        assert_same(ours, theirs, 1e-9)
    assert_same(stepped(mixer, x, [1, 70, 1, 1, 77]), want)


BLOCKS = {"block": 16, "window_blocks": 2, "random_blocks": 2, "global_blocks": 1, "seed": 5, "layer": 1}


def test_all_heads_sparse_are_bigbird_and_none_linear_attention():
    mixer, bigbird = build("sparse_linear", local_heads=4, **BLOCKS), build("bigbird", **BLOCKS)
    bigbird.load_state_dict(mixer.state_dict())
    x = draw(2, LENGTH, 32)
    assert_same(mixer(x), bigbird(x), 1e-12)
    none, linear = build("sparse_linear", local_heads=0, **BLOCKS), build("window_linear", local_heads=0)
    assert_same(none(x), linear(x), 1e-12)
    assert not torch.allclose(none(x), mixer(x))


def test_the_sparse_heads_are_those_of_bigbird():
    mixer, bigbird = build("sparse_linear", local_heads=2, **BLOCKS), build("bigbird", **BLOCKS)
    bigbird.load_state_dict(mixer.state_dict())
    mixer.out = bigbird.out = torch.nn.Identity()
    x = draw(2, LENGTH, 32)
    assert_same(mixer(x)[..., :16], bigbird(x)[..., :16], 1e-12)
    assert not torch.allclose(mixer(x)[..., 16:24], bigbird(x)[..., 16:24])


def test_a_gated_sum_over_all_blocks_is_that_of_softmax_and_linear_attention():
    options = {"window_blocks": 10, "random_blocks": 0, "global_blocks": 0}
    mixer, x = build("sparse_linear", mode="gate", block=16, **options), draw(2, LENGTH, 32)
    softmax, linear = build("softmax"), build("sparse_linear", local_heads=0)
    for part in (softmax, linear):
        part.load_state_dict(mixer.state_dict(), strict=False)
    with torch.no_grad():
        mixer.shares.weight.zero_()
    assert_same(mixer(x), (softmax(x) + linear(x)) / 2)


def test_constant_values_give_constant_outputs():
    mixer, x = build("sparse_linear", **BLOCKS), draw(2, LENGTH, 32)
    x[..., 0] = 1
    with torch.no_grad():
        mixer.value.weight[:, 1:] = 0
    assert_same(mixer(x), mixer.out(mixer.value(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_cache_is_all_keys_of_the_sparse_heads_and_a_state(dtype):
    wide = max(dtype.itemsize, 4)
    for options, sparse, linear in (({"mode": "gate"}, 4, 4), ({}, 2, 2), ({"local_heads": 1}, 1, 3)):
        for context in (10, 1000):
            want = 2 * context * sparse * 8 * dtype.itemsize + linear * 8 * 9 * wide
            assert build("sparse_linear", **options).cost(context, dtype).cache_bytes == want


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "shared"}, "mode='shared': expected one of heads, gate"),
        ({"window_blocks": 0}, "window_blocks=0: expected at least 1 block"),
        ({"random_blocks": -1}, "random_blocks=-1"),
        ({"block": 17}, "block=17: expected one of 16, 32, 64, 128"),
        ({"local_heads": -1}, "local_heads=-1: expected 0 to heads=4"),
        ({"feature_map": "exp"}, r"feature_map='exp': expected one of elu\+1, taylor, hedgehog"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("sparse_linear", **options)
