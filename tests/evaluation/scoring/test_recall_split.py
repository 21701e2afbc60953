from itertools import pairwise

import numpy as np
import pytest

from tests.evaluation.scoring.test_perplexity import BOS, some_documents
from tests.evaluation.tiny_run import small_decoder
from zoo.evaluation.scoring.documents import cut_documents, score_windows
from zoo.evaluation.scoring.perplexity_sums import evaluate_perplexity, part_records
from zoo.evaluation.scoring.repeated_bigrams import GAP_EDGES, GROUPS, bigram_gaps, gap_groups, split_sums


def naive_gaps(tokens):
    """For every token, the last earlier place of its bigram by looking at all of them."""
    pairs = list(pairwise(tokens))
    gaps = []
    for place, pair in enumerate(pairs):
        earlier = [place - before for before in range(place) if pairs[before] == pair]
        gaps.append(min(earlier, default=0))
    return gaps


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 10, 60_000])
def test_gaps_of_random_texts(vocabulary):
    random = np.random.default_rng(vocabulary)
    for length in (1, 2, 3, 50, 200):
        tokens = random.integers(0, vocabulary, length).astype(np.uint16)
        assert bigram_gaps(tokens).tolist() == naive_gaps(tokens.tolist())


def test_gaps_of_a_text_that_can_be_read():
    assert bigram_gaps(np.array(list(b"abcabxbcab"))).tolist() == [0, 0, 0, 3, 0, 0, 5, 5, 5]
    assert bigram_gaps(np.array([7, 7, 7])).tolist() == [0, 1]
    assert bigram_gaps(np.array([], dtype=np.int64)).tolist() == []


def test_large_ids_do_not_collide():
    top = 2**31
    assert bigram_gaps(np.array([0, top, 1, 0, top - 1, 0, top])).tolist() == [0, 0, 0, 0, 0, 5]


def test_groups_hold_the_gaps_they_name():
    groups = gap_groups(np.array([0, 1, 15, 16, 63, 64, 65_535, 65_536, 10**9]))
    assert groups.tolist() == [0, 1, 1, 2, 2, 3, GROUPS - 2, GROUPS - 1, GROUPS - 1]


def repeating_documents():
    random = np.random.default_rng(5)
    return [random.integers(0, 4, length).astype(np.uint16) for length in (1, 20, 37, 90)]


@pytest.mark.parametrize(("length", "stride", "stateful"), [(16, None, False), (16, 5, False), (16, None, True)])
def test_sums_are_those_of_single_tokens(length, stride, stateful):
    """Token by token in Python: the context is the window, or the whole document before it if stateful."""
    decoder, documents = small_decoder(), repeating_documents()
    counts = np.array([[len(d), 1, len(d)] for d in documents])
    sizes = np.arange(257) % 3 + 1
    expected = np.zeros((len(documents), GROUPS, 3))
    window = 100 if stateful else length
    for piece, nats in score_windows(decoder, cut_documents(documents, BOS, window, None if stateful else stride)):
        gaps = naive_gaps(piece.tokens.tolist())[-piece.scored :]
        for gap, token, nat in zip(gaps, piece.tokens[-piece.scored :], nats):
            group = 0 if gap == 0 else 1 + sum(gap >= edge for edge in GAP_EDGES[1:])
            expected[piece.document, group] += nat, 1, sizes[token]
    for batch_tokens in (1, 40, 10_000):
        scores = evaluate_perplexity(
            decoder, documents, counts, BOS, length, stride, batch_tokens, stateful=stateful, token_bytes=sizes
        )
        np.testing.assert_allclose(scores.groups, expected, rtol=1e-5)
        np.testing.assert_allclose(scores.groups[..., 0].sum(axis=1), scores.nats, rtol=1e-12)
        assert (scores.groups[..., 1].sum(axis=1) == scores.tokens).all()
    assert (expected[..., 1].sum(axis=0)[: 3 if stateful else 2] > 0).all()


def test_a_longer_context_recalls_more():
    documents, counts = some_documents([300], seed=2)
    documents = [documents[0] % 8]
    recalled = []
    for length in (8, 32, 128, 300):
        scores = evaluate_perplexity(
            small_decoder(), documents, counts, BOS, length, token_bytes=np.ones(257, dtype=np.int64)
        )
        recalled.append(scores.groups[0, 1:, 1].sum())
    assert recalled == sorted(set(recalled))


def test_parts_are_named_and_add_up():
    sums = np.zeros((2, GROUPS, 3))
    sums[:, 0], sums[:, 1], sums[0, 3] = (8, 4, 10), (1, 2, 3), (3, 1, 5)
    parts = dict(split_sums(sums))
    assert list(parts) == ["recall", "other", "recall-gap-1-16", "recall-gap-64-256"]
    assert parts["recall"].tolist() == [[4, 3, 8], [1, 2, 3]]
    np.testing.assert_array_equal(parts["recall"] + parts["other"], sums.sum(axis=1))


def test_records_of_a_part_count_the_documents_that_have_it():
    table = np.array([[3.0, 1, 5], [0, 0, 0], [1.0, 1, 3]])
    perplexity, bits = part_records("perplexity", "recall", 16, table, 0)
    assert (perplexity.n, perplexity.value) == (2, pytest.approx(np.exp(2)))
    assert bits.value == pytest.approx(4 / 8 / np.log(2))
    assert perplexity.ci95 == pytest.approx((np.exp(1), np.exp(3)))
    assert part_records("perplexity", "recall", 16, 0 * table, 0) == []
    unknown = part_records("perplexity", "recall", 16, table * [1, 1, 0], 0)
    assert [record.metric for record in unknown] == ["perplexity"]
