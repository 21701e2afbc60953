"""Block layouts: both lists say the same, from every constructor, packed or not, and to BlockMask and back."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from tests.kernels.softmax_oracle import Pattern, pack_bits
from tests.tiers import in_ci
from zoo_kernels import BlockLayout


def decode(layout, length, by_key=False):
    """``(B', H', length, length)`` bool, read entry by entry from the arrays; every entry is seen once."""
    lists, n = layout.by_key if by_key else layout.by_query, layout.block
    batches, heads, rows = lists.full.shape
    seen = torch.zeros(batches, heads, rows * n, rows * n, dtype=torch.bool)
    for b, h, row in product(range(batches), range(heads), range(rows)):
        first, last = (int(lists.offsets[b, h, row + i]) for i in (0, 1))
        whole = first + int(lists.full[b, h, row])
        assert first <= whole <= last <= len(lists.blocks)
        for entry in range(first, last):
            query, key = row, int(lists.blocks[entry])
            query, key = (key, query) if by_key else (query, key)
            assert key < query or (key == query and entry >= whole)
            place = seen[b, h, query * n : (query + 1) * n, key * n : (key + 1) * n]
            assert not place.any()
            rule = int(lists.masks[entry])
            if entry < whole or rule < 0:
                place[:] = True
            else:
                words = layout.bits[rule].long()
                for column in range(n):
                    place[:, column] = (words[:, column // 32] >> column % 32 & 1).bool()
    return seen.tril()[..., :length, :length]


def assert_says(layout, want):
    length = want.shape[-1]
    for by_key in (False, True):
        assert torch.equal(decode(layout, length, by_key), want)


def draw(block, blocks, batches=1, heads=1, listed=4, ruled=True):
    index = torch.randint(-1, blocks, (batches, heads, blocks, listed))
    if not ruled:
        return Pattern(block, index)
    return Pattern(block, index, torch.randint(-1, 5, index.shape), torch.rand(5, block, block) < 0.5)


@pytest.mark.parametrize("ruled", [False, True], ids=["plain", "bits"])
@pytest.mark.parametrize(("batches", "heads"), [(1, 1), (2, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_both_lists_hold_the_pairs_of_an_index(block, batches, heads, ruled):
    pattern = draw(block, 5, batches, heads, ruled=ruled)
    layout = pattern.layout()
    assert layout.shape == (batches, heads, 5)
    assert_says(layout, pattern.mask(batches, 5 * block))


def test_pairs_may_come_in_any_order_twice_and_above_the_diagonal():
    query = torch.tensor([2, 0, 2, 1, 2, 1, 0, 3])
    key = torch.tensor([0, 0, 2, 2, 0, 1, -1, 1])
    zero = torch.zeros_like(query)
    layout = BlockLayout.from_pairs(16, 3, zero, zero, query, key)
    want = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    want[0, 0, [2, 0, 2, 1], [0, 0, 2, 1]] = True
    assert_says(layout, want.repeat_interleave(16, 2).repeat_interleave(16, 3).tril())
    assert layout.by_query.full.tolist() == [[[0, 0, 1]]]
    assert layout.by_key.full.tolist() == [[[1, 0, 0]]]


@pytest.mark.parametrize("heads", [1, 2])
def test_a_map_of_blocks(heads):
    visible = torch.rand(2, heads, 6, 6) < 0.4
    assert_says(BlockLayout.from_blocks(visible, 16), visible.repeat_interleave(16, 2).repeat_interleave(16, 3).tril())


def test_nothing_listed():
    layout = BlockLayout.from_blocks(torch.zeros(1, 1, 3, 3, dtype=torch.bool), 32)
    assert_says(layout, torch.zeros(1, 1, 96, 96, dtype=torch.bool))
    assert_says(layout.packed(torch.zeros(2, 70)), torch.zeros(2, 1, 70, 70, dtype=torch.bool))
    assert layout.density(96) == 0


def test_arrays_are_int32_and_survive_the_way_through_tensors():
    layout = draw(32, 4, heads=2).layout()
    assert all(x.dtype == torch.int32 for x in layout.tensors())
    again = BlockLayout.from_tensors(32, layout.to("cpu").tensors())
    assert all(map(torch.equal, again.tensors(), layout.tensors()))


@pytest.mark.parametrize("ruled", [False, True], ids=["plain", "bits"])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("density", [0.1, *in_ci(0.0, 0.01, 0.6, 1.0)])
@pytest.mark.parametrize(("block", "length"), [(16, 90), (32, 129), (64, 300), (128, 257)])
def test_packed_documents_see_what_each_sees_alone(block, length, density, heads, ruled):
    pattern = draw(block, -(-length // block), heads=heads, listed=3, ruled=ruled)
    documents = (torch.rand(2, length) < density).cumsum(1)
    layout = pattern.layout().packed(documents)
    assert layout.shape == (2, heads, -(-length // block))
    assert_says(layout, pattern.mask(2, length, documents))


def test_each_batch_row_packs_its_own_lists():
    pattern = draw(16, 4, batches=2, heads=2)
    documents = torch.tensor([[3] * 40 + [1] * 24, [0] * 5 + [7] * 59])
    assert_says(pattern.layout().packed(documents), pattern.mask(2, 64, documents))


def test_packing_one_document_changes_no_pair_and_no_whole_block():
    pattern = draw(32, 6, ruled=False)
    layout = pattern.layout()
    packed = layout.packed(torch.full((1, 192), 4))
    assert torch.equal(packed.by_query.full, layout.by_query.full)
    assert torch.equal(packed.by_query.offsets, layout.by_query.offsets)


@pytest.mark.slow
def test_compiled_in_one_graph_with_unused_capacity():
    pattern = draw(16, 5, heads=2)
    bits = pack_bits(pattern.seen)
    documents = (torch.rand(2, 75) < 0.05).cumsum(1)

    def build(index, rules, documents):
        layout = BlockLayout.from_index(index, 16, rules, bits)
        return layout.tensors(), layout.packed(documents).tensors()

    made = torch.compile(build, backend="aot_eager", fullgraph=True)(pattern.index, pattern.rules, documents)
    assert len(made[0][2]) == pattern.index.numel()
    assert_says(BlockLayout.from_tensors(16, made[0]), pattern.mask(1, 75))
    assert_says(BlockLayout.from_tensors(16, made[1]), pattern.mask(2, 75, documents))


def test_density_counts_causal_pairs_in_listed_blocks():
    dense = BlockLayout.from_blocks(torch.ones(1, 2, 4, 4, dtype=torch.bool), 16)
    diagonal = BlockLayout.from_blocks(torch.eye(4, dtype=torch.bool)[None, None], 16)
    for length in (16, 50, 64):
        assert dense.density(length) == 1
    assert diagonal.density(40) == (2 * 16 * 17 + 8 * 9) / (40 * 41)


RULES = {
    "causal": lambda b, h, q, k: q >= k,
    "window": lambda b, h, q, k: (q >= k) & (q - k < 100),
    "heads and rows": lambda b, h, q, k: (q >= k) & (q - k < 20 * (h + 1) + 50 * b),
    "not causal": lambda b, h, q, k: (q - k).abs() < 30,
    "stride": lambda b, h, q, k: (q >= k) & ((q - k) % 7 == 0),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@pytest.mark.parametrize(("batch", "heads"), [(None, None), (2, 3)])
@pytest.mark.parametrize("length", [*in_ci(256), 200])
def test_a_block_mask_becomes_a_layout_and_a_block_mask_again(rule, batch, heads, length):
    mask = create_block_mask(rule, batch, heads, length, length, device="cpu", BLOCK_SIZE=64)
    places = [torch.arange(n) for n in (batch or 1, heads or 1, length, length)]
    want = rule(*torch.meshgrid(*places, indexing="ij")).tril()
    layout = BlockLayout.from_block_mask(mask)
    assert_says(layout, want)
    again = layout.to_block_mask(length)
    assert isinstance(again, BlockMask)
    assert again.seq_lengths == (length, length)
    assert torch.equal(again.mask_mod(*torch.meshgrid(*places, indexing="ij")), want)
    assert_says(BlockLayout.from_block_mask(again), want)


def test_a_whole_block_of_a_block_mask_stays_whole():
    mask = create_block_mask(RULES["causal"], 1, 1, 256, 256, device="cpu", BLOCK_SIZE=64)
    layout = BlockLayout.from_block_mask(mask)
    assert layout.by_query.full.tolist() == [[[0, 1, 2, 3]]]
    assert not len(layout.bits)
    again = layout.to_block_mask()
    assert torch.equal(again.to_dense(), mask.to_dense())
    assert torch.equal(again.full_kv_num_blocks, mask.full_kv_num_blocks)


INDEX = torch.zeros(1, 1, 2, 1, dtype=torch.int64)
LINE = torch.zeros(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: BlockLayout.from_index(INDEX, 48), "block=48: expected one of 16, 32, 64, 128"),
        (lambda: BlockLayout.from_index(INDEX[0], 16), r"index has shape \(1, 2, 1\)"),
        (lambda: BlockLayout.from_index(INDEX, 16, INDEX), "bits must be given"),
        (lambda: BlockLayout.from_index(INDEX, 64, INDEX, torch.zeros(1, 64, 1)), r"expected int32 \(M, 64, 2\)"),
        (lambda: BlockLayout.from_pairs(16, 2, LINE, LINE, LINE, LINE[:2]), "arrays of one length"),
        (lambda: BlockLayout.from_blocks(torch.zeros(1, 1, 2, 3).bool(), 16), r"of shape \(1, 1, 2, 3\), expected"),
        (lambda: BlockLayout.from_index(INDEX, 16).packed(torch.zeros(1, 33)), "33 tokens do not fit into .* 2 blocks"),
        (
            lambda: BlockLayout.from_index(INDEX.expand(3, 1, 2, 1), 16).packed(torch.zeros(2, 9)),
            "2 rows, the layout 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_block_mask_of_oblong_blocks_is_refused():
    mask = create_block_mask(RULES["causal"], 1, 1, 256, 256, device="cpu", BLOCK_SIZE=(64, 128))
    with pytest.raises(ValueError, match="64 by 128"):
        BlockLayout.from_block_mask(mask)
