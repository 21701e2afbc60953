"""Views of keys and values: columns in order for a piece, the slots as they lie for a step, constants before it."""

from __future__ import annotations

import pytest
import torch

from zoo.mixers.caches import BlockCache, KeyValueCache

BATCH, HEADS, WIDTH, VALUES, BLOCK = 3, 2, 4, 6, 16
KINDS = {"all tokens": {}, "with sums": {"block": BLOCK}}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())


def empty(options, capacity=0, dtype=torch.float64):
    cls = BlockCache if options else KeyValueCache
    return cls(BATCH, capacity, HEADS, WIDTH, None, dtype, VALUES, **options)


def numbered(starts, length, sign=1):
    """Keys or values that say which token of their row they are of, counted from 1."""
    place = torch.tensor(starts)[:, None] + torch.arange(1, length + 1)
    return sign * place.double()[..., None, None].expand(-1, -1, HEADS, WIDTH if sign > 0 else VALUES)


def append(cache, length, lengths=None):
    starts = cache.lengths.tolist()
    given = None if lengths is None else torch.tensor(lengths)
    return cache.append(numbered(starts, length), numbered(starts, length, -1), given)


def shown(view, row):
    """Tokens of a row, by its keys, without the columns that lie before it."""
    keys = view.keys[row, :, 0, 0]
    assert torch.equal(view.values[row, :, 0, 0], -keys)
    mine = slice(None) if view.documents is None else view.documents[row] == view.documents[row, -1]
    return keys[mine].tolist()


@every_kind
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_a_piece_reads_all_tokens_of_its_row_in_order(options, grad):
    """With ids for the columns before a row where rows are uneven, and none where they are not."""
    cache = empty(options)
    with torch.set_grad_enabled(grad):
        for length, lengths in ((5, None), (3, None), (4, [4, 1, 0]), (2, None), (6, [1, 4, 6]), (3, None)):
            before, even = cache.lengths.tolist(), len(set(cache.lengths.tolist())) == 1
            view = append(cache, length, lengths)
            assert not view.in_slots and not view.ring and (view.documents is None) == even
            for row, start in enumerate(before):
                assert shown(view, row) == list(range(1, start + length + 1))
            assert torch.equal(view.lengths, cache.lengths)


@every_kind
def test_a_step_reads_the_slots_and_copies_none(options):
    cache = empty(options, capacity=40)
    with torch.no_grad():
        append(cache, 9, [9, 4, 6])
        for lengths in (None, [1, 0, 1], None):
            before = cache.lengths
            view = append(cache, 1, lengths)
            assert view.in_slots and view.documents is None
            assert view.keys.data_ptr() == cache.keys.data_ptr() and view.values.data_ptr() == cache.values.data_ptr()
            assert torch.equal(view.lengths, before + 1)
            assert view.keys.shape[1] == int(before.max()) + 1
            for row, seen in enumerate(view.lengths.tolist()):
                assert view.keys[row, :seen, 0, 0].tolist() == list(range(1, seen + 1))


@every_kind
def test_what_was_held_is_a_constant_and_the_piece_is_not(options):
    cache, leaves = empty(options), [numbered([0] * BATCH, 4, sign).clone().requires_grad_() for sign in (1, -1)]
    cache.append(*leaves)
    piece = [x.detach().clone().requires_grad_() for x in leaves]
    view = cache.append(*piece)
    for held, old, new in ((view.keys, leaves[0], piece[0]), (view.values, leaves[1], piece[1])):
        grads = torch.autograd.grad(held.sum(), [old, new], allow_unused=True)
        assert grads[0] is None and torch.equal(grads[1], torch.ones_like(new))
    assert not any(x.requires_grad for x in (cache.keys, cache.values))


@every_kind
def test_it_holds_its_own_type_and_gives_that_of_the_piece(options):
    cache = empty(options, dtype=torch.bfloat16)
    for _ in range(2):
        view = append(cache, 3)
    assert view.keys.dtype == view.values.dtype == torch.float64
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16
    with torch.no_grad():
        assert append(cache, 1).keys.dtype == torch.bfloat16  # the kernel reads what is held


@every_kind
def test_it_grows_by_doubling(options):
    cache, sizes = empty(options, capacity=4), []
    with torch.no_grad():
        for _ in range(20):
            append(cache, 1)
            sizes.append(cache.keys.shape[1])
    assert sorted(set(sizes)) == [4, 8, 16, 32]


def test_sums_are_of_the_keys_of_each_finished_block():
    """A step learns how many tokens its own block has at most, from rows that may be uneven."""
    cache = empty(KINDS["with sums"])
    with torch.no_grad():
        for length, lengths in ((30, [30, 17, 3]), (1, None), (20, [20, 20, 1]), (1, [1, 1, 0]), (1, None)):
            longest = int(cache.lengths.max())
            view = append(cache, length, lengths)
            assert view.sums.shape[1] == longest // BLOCK and view.own == min(BLOCK, longest + 1)
            for row, seen in enumerate(cache.lengths.tolist()):
                for block in range(seen // BLOCK):
                    want = sum(range(block * BLOCK + 1, (block + 1) * BLOCK + 1))
                    assert (cache.sums[row, block] == want).all()
    even = empty(KINDS["with sums"])
    with torch.no_grad():
        append(even, 37)
        assert append(even, 1).own == 37 % BLOCK + 1
