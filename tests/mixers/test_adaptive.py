"""Adaptive attention: the position of a query in its document, and nothing else, says what it reads."""

from __future__ import annotations

import pytest
import torch

import zoo

SMALL = {"full_below": 64, "window_below": 112, "block": 16, "window_blocks": 2, "random_blocks": 1, "global_blocks": 1}


def build(name="adaptive", **options):
    torch.manual_seed(0)
    given = {"width": 32, "heads": 4} | (SMALL if name == "adaptive" else {}) | options
    return zoo.mixers.build(name, **given).double()


def draw(length):
    return torch.randn(2, length, 32, dtype=torch.float64)


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def like(name, mixer, **options):
    """Another mixer with the same weights."""
    other = build(name, **options)
    other.load_state_dict(mixer.state_dict())
    return other


def test_lists_are_all_then_a_window_then_those_of_bigbird():
    pattern = build().pattern
    beyond = build("bigbird", block=16, window_blocks=2, random_blocks=1, global_blocks=1).pattern
    blocks = torch.arange(20)
    for h, rows in enumerate(pattern.lists(blocks).tolist()):
        for i, row in enumerate(rows):
            row = [j for j in row if j >= 0]
            if i < 4:
                assert row == list(range(i + 1))
            elif i < 7:
                assert row == [i - 1, i]
            else:
                assert row == [j for j in beyond.lists(blocks)[h, i].tolist() if j >= 0]
                assert len(row) == 4


@pytest.mark.parametrize("full", [160, 320])
def test_a_threshold_behind_the_end_is_full_attention(full):
    mixer, x = build(full_below=full, window_below=full), draw(150)
    same(mixer(x), like("softmax", mixer)(x))


def test_thresholds_of_zero_are_bigbird():
    mixer, x = build(full_below=0, window_below=0), draw(150)
    same(mixer(x), like("bigbird", mixer, block=16, window_blocks=2, random_blocks=1, global_blocks=1)(x))


def test_tokens_change_their_rule_at_the_thresholds():
    mixer, x = build(), draw(150)
    full, sparse = (
        like("softmax", mixer)(x),
        like("bigbird", mixer, block=16, window_blocks=2, random_blocks=1, global_blocks=1)(x),
    )
    window = like("bigbird", mixer, block=16, window_blocks=2, random_blocks=0, global_blocks=0)(x)
    y = mixer(x)
    same(y[:, :64], full[:, :64])
    same(y[:, 64:112], window[:, 64:112])
    same(y[:, 112:], sparse[:, 112:])
    for start, stop, others in ((64, 112, (full, sparse)), (112, 150, (full, window))):
        for other in others:
            assert (y[:, start:stop] - other[:, start:stop]).abs().amax(-1).min() > 1e-7


def test_the_length_changes_nothing():
    mixer, x = build(), draw(150)
    for length in (40, 65, 113, 149):
        same(mixer(x[:, :length]), mixer(x)[:, :length])


def test_a_packed_document_counts_its_own_positions():
    """Its first tokens read all of it, though they lie behind the thresholds of the row."""
    mixer, x = build(), draw(200)
    documents = (torch.arange(200) >= 130).long().expand(2, 200)
    packed = mixer(x, documents=documents)
    same(packed[:, 130:194], like("softmax", mixer)(x[:, 130:])[:, :64])
    same(packed[:, 130:], mixer(x[:, 130:]))


def test_the_cost_of_a_short_sequence_is_that_of_full_attention():
    assert build().cost(63) == build("softmax").cost(63)
    assert build().cost(128).flops_per_token < build("softmax").cost(128).flops_per_token
    with torch.device("meta"):
        assert zoo.mixers.build("adaptive", width=32, heads=4).cost(64).parameters == 4 * 32**2


@pytest.mark.parametrize(
    ("lengths", "blocks"), [([40], 3), ([63], 4), ([64], 2), ([111], 2), ([112], 4), ([300], 4), ([111, 40, 65], 3)]
)
def test_a_step_gathers_what_its_positions_list(monkeypatch, lengths, blocks):
    """And not as many keys as a full query would; of rows of other lengths, as the longest list."""
    import zoo.mixers.parts.patterns as module

    gathered, step = [], module.softmax_attention_step
    monkeypatch.setattr(
        module, "softmax_attention_step", lambda q, k, *rest: (gathered.append(k.shape[1]), step(q, k, *rest))[1]
    )
    mixer, x = build(), torch.randn(len(lengths), max(lengths), 32, dtype=torch.float64)
    cache = mixer.new_cache(len(lengths), dtype=torch.float64)
    with torch.no_grad():
        mixer(x, cache=cache, lengths=torch.tensor(lengths))
        mixer(x[:, :1], cache=cache)
    assert gathered == [min(16 * blocks, max(lengths) + 1)]
    if len(lengths) == 1:
        assert mixer.pattern.step_keys(lengths[0]) == gathered[0]


@pytest.mark.slow
def test_far_behind_the_thresholds_decoding_costs_no_more_than_training():
    mixer = zoo.mixers.build("adaptive", width=64, heads=4, full_below=65536, window_below=65536)
    projections = 8 * 64**2
    assert mixer.step_flops(1_000_000) == 4 * 64 * 12 * 64
    assert mixer.cost(1_000_000).decode_flops_per_token == projections + 4 * 64 * 12 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"full_below": 65}, "full_below=65 and window_below=112: expected multiples of block=16"),
        ({"window_below": 120}, "window_below=120: expected multiples of block=16"),
        ({"full_below": 128}, "the first not above the second"),
        ({"full_below": -16}, "full_below=-16"),
        ({"window_blocks": 0}, "window_blocks=0"),
        ({"block": 0}, "block=0: expected one of 16"),
    ],
)
def test_positions_and_counts_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
