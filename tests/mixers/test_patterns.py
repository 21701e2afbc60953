"""Block patterns: lists, whole sequences, single steps that gather, and the hash behind random choices."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch

from zoo.mixers.parts.patterns import KEPT, BlockPattern, hashed
from zoo_kernels import softmax_attention

pytestmark = pytest.mark.usefixtures("poisoned")

HEADS = 4


def strided(blocks, heads):
    """Lists with all that is to be dropped: the own block twice, the future, what is before the start."""
    near = blocks[:, None] - torch.tensor([0, 2, 0, 5])
    lists = [torch.cat([near - h * (near < blocks[:, None]), blocks[:, None] + 1], 1) for h in range(heads)]
    return torch.stack(lists)


def build(heads, block=16):
    return BlockPattern(block, partial(strided, heads=heads))


def visible(pattern, length, heads=HEADS):
    """``(H, T, T)``: whether a token is read, from the definition, one list at a time."""
    shown = torch.zeros(heads, length, length, dtype=torch.bool)
    block = pattern.block
    for i in range(-(-length // block)):
        listed = pattern.listed(torch.tensor([i])).expand(heads, -1, -1)
        for h in range(heads):
            for j in listed[h, 0].tolist():
                if 0 <= j <= i:
                    shown[h, i * block : (i + 1) * block, j * block : (j + 1) * block] = True
    return shown & torch.ones(length, length).tril().bool()


def dense(q, k, v, shown):
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~shown, -torch.inf)
    return torch.einsum("bhtj,bjhd->bthd", scores.softmax(-1), v), scores.logsumexp(-1).transpose(1, 2)


def draw(batch, length, groups=HEADS):
    shapes = (batch, length, HEADS, 8), (batch, length, groups, 8), (batch, length, groups, 8)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("heads", [1, HEADS])
def test_lists_are_ascending_without_duplicates_or_the_future(heads):
    pattern = build(heads)
    blocks = torch.tensor([0, 1, 7, 30])
    for h, rows in enumerate(pattern.lists(blocks).tolist()):
        for i, row in zip(blocks.tolist(), rows):
            want = sorted({j for j in (i, i - 2 - h, i - 5 - h) if j >= 0})
            assert row == want + [-1] * (5 - len(want))


@pytest.mark.parametrize("length", [1, 16, 17, 100, 133])
@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("groups", [1, 2, HEADS])
def test_a_sequence_equals_dense_attention_under_the_mask(length, heads, groups):
    pattern, (q, k, v) = build(heads), draw(2, length, groups)
    got, lse = pattern.whole(q, k, v, return_lse=True)
    want, want_lse = dense(q, k, v, visible(pattern, length))
    close(got, want)
    close(lse, want_lse)


@pytest.mark.parametrize("queries", [2, 40, 99])
def test_the_end_of_a_sequence_equals_that_of_the_whole(queries):
    pattern, (q, k, v) = build(HEADS), draw(2, 100, 2)
    close(pattern.whole(q[:, -queries:], k, v), pattern.whole(q, k, v)[:, -queries:])


def test_documents_equal_each_alone():
    pattern, (q, k, v) = build(HEADS), draw(1, 100, 2)
    documents = torch.tensor([[0] * 37 + [1] * 63])
    want = [pattern.whole(*(x[:, part] for x in (q, k, v))) for part in (slice(37), slice(37, None))]
    close(pattern.whole(q, k, v, documents=documents), torch.cat(want, 1))


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("groups", [1, 2, HEADS])
@pytest.mark.parametrize("lengths", [[1, 1, 1], [1, 16, 17], [33, 100, 64], [100, 100, 99]])
def test_a_step_equals_the_last_row_of_each_sequence(heads, groups, lengths):
    pattern, (q, k, v) = build(heads), draw(3, max(lengths), groups)
    rows = [q[i, n - 1] for i, n in enumerate(lengths)]
    got = pattern.step(torch.stack(rows), k, v, torch.tensor(lengths))
    for i, n in enumerate(lengths):
        want = pattern.whole(q[i : i + 1, :n], k[i : i + 1, :n], v[i : i + 1, :n])
        close(got[i], want[0, -1])


@pytest.mark.parametrize("heads", [1, HEADS])
def test_a_step_reads_nothing_but_the_listed_blocks(heads):
    pattern, (q, k, v) = build(heads), draw(1, 200)
    shown = visible(pattern, 200)[:, -1]  # (H, T)
    want = pattern.step(q[:, -1], k, v, torch.tensor([200]))
    hidden = (~shown).T[None, ..., None]
    got = pattern.step(q[:, -1], *(x.masked_fill(hidden, 1e6) for x in (k, v)), torch.tensor([200]))
    assert torch.equal(got, want)


@pytest.mark.parametrize("heads", [1, HEADS])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 100, 133])
def test_pairs_are_those_of_the_mask(heads, length):
    pattern = build(heads)
    assert pattern.pairs(length) == visible(pattern, length).sum() / HEADS
    total = length * (length + 1) / 2
    assert pattern.layout(length, "cpu").density(length) == pytest.approx(pattern.pairs(length) / total)


def test_a_list_may_leave_out_the_own_block():
    pattern = BlockPattern(16, lambda blocks: (blocks[:, None] - 1)[None])
    assert pattern.pairs(40) == 16 * 16 + 8 * 16
    q, k, v = draw(1, 40)
    out, lse = pattern.whole(q, k, v, return_lse=True)
    assert not out[:, :16].any()
    assert (lse[:, :16] == -torch.inf).all()
    close(pattern.step(q[:, -1], k, v, torch.tensor([40])), out[:, -1])


def test_layouts_are_remembered_and_forgotten():
    pattern = build(1)
    first = pattern.layout(40, "cpu")
    assert pattern.layout(48, "cpu") is first
    assert pattern.layout(49, "cpu") is not first
    for length in range(100, 100 + 16 * KEPT, 16):
        pattern.layout(length, "cpu")
    assert len(pattern._layouts) == KEPT
    assert pattern.layout(40, "cpu") is not first


def test_growing_pieces_share_layouts():
    pattern, (q, k, v) = build(1), draw(1, 500)
    for stop in range(20, 500, 20):
        pattern.whole(q[:, stop - 3 : stop], k[:, :stop], v[:, :stop])
    assert sorted(count for count, _ in pattern._layouts) == [2, 4, 8, 16, 32]


def test_a_layout_is_no_wider_than_its_sequence():
    pattern = BlockPattern(16, lambda blocks: torch.arange(1000).expand(1, len(blocks), -1))
    assert pattern.layout(100, "cpu").longest == 7
    q, k, v = draw(1, 100)
    close(pattern.whole(q, k, v), softmax_attention(q, k, v))
    assert pattern.step_keys(99) == 100
    assert pattern.step_keys(100_000) == 16_000


def test_patterns_can_be_copied_and_pickled():
    for other in (copy.deepcopy(build(HEADS)), pickle.loads(pickle.dumps(build(HEADS)))):
        assert torch.equal(other.lists(torch.arange(9)), build(HEADS).lists(torch.arange(9)))


@pytest.mark.parametrize("block", [0, 8, 48, 256])
def test_blocks_that_the_kernels_do_not_have_are_refused(block):
    with pytest.raises(ValueError, match=f"block={block}: expected one of 16, 32, 64, 128"):
        build(1, block)


def test_one_key_gives_the_published_stream_of_splitmix64():
    """With key 0 the first number of the stream of seed 0; one bit goes into the sign."""
    assert hashed(torch.tensor(0)).item() == 0xE220A8397B1DCDAF >> 1


def test_keys_of_any_size_wrap_around():
    key = torch.arange(9)
    assert hashed(key, 2**63).equal(hashed(key, -(2**63))) and hashed(key, 2**64 + 5).equal(hashed(key, 5))


def test_the_hash_tells_all_keys_and_their_places_apart():
    a, b = torch.arange(200)[:, None], torch.arange(200)
    assert hashed(a, b).unique().numel() == 200 * 200
    assert hashed(a, b)[3, 4] == hashed(torch.tensor(3), 4)
    assert hashed(a, -1, b).unique().numel() == 200 * 200
    bits = (hashed(a, b)[..., None] >> torch.arange(63)) & 1
    assert (bits.double().mean((0, 1)) - 0.5).abs().max() < 5 * 0.5 / 200
    flipped = (hashed(a, b) ^ hashed(a, b ^ 1))[..., None] >> torch.arange(63) & 1
    assert (flipped.double().mean((0, 1)) - 0.5).abs().max() < 5 * 0.5 / 200
