import math

import numpy as np
import pytest
import torch

from tests.evaluation.tiny_run import small_decoder
from tests.tiers import in_ci
from zoo.evaluation.results.statistics import bootstrap_sums, interval
from zoo.evaluation.scoring.documents import batch_pieces, cut_documents, score_documents, score_windows
from zoo.evaluation.scoring.perplexity_sums import DocumentScores, estimate_metrics, evaluate_perplexity
from zoo.evaluation.scoring.windows import rolling_windows

BOS = 256
SCHEDULES = {
    "softmax": ["softmax", "softmax"],
    "gqa": ["gqa", "gqa"],
    "mqa": ["mqa", "mqa"],
    "lightning": ["lightning", "lightning"],
    "mixed": ["lightning", "softmax", "mqa", "lightning"],
}


def some_documents(lengths, seed=0):
    random = np.random.default_rng(seed)
    documents = [random.integers(0, 256, size=length).astype(np.uint16) for length in lengths]
    counts = np.array([[length, max(1, length // 5), length] for length in lengths])
    return documents, counts


def naive_nats(decoder, document, length, stride):
    """Window by window, one at a time, with the whole softmax in float64."""
    extended = torch.tensor([BOS, *document.tolist()])
    total = 0.0
    for window in rolling_windows(len(document), length, stride):
        ids = extended[window.start : window.stop + 1]
        with torch.no_grad():
            log_probabilities = decoder(ids[None, :-1])[0].double().log_softmax(-1)
        nats = -log_probabilities.gather(1, ids[1:, None])[:, 0]
        total += float(nats[-window.scored :].sum())
    return total


@pytest.mark.parametrize("layers", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("stride", [*in_ci(None), 5])
def test_batches_of_any_size_give_what_single_windows_give(layers, stride):
    decoder = small_decoder(layers)
    documents, counts = some_documents([1, 3, 16, 17, 40, 5, 33, 100])
    expected = [naive_nats(decoder, document, 16, stride) for document in documents]
    for batch_tokens in (1, 50, 10_000):
        scores = evaluate_perplexity(decoder, documents, counts, BOS, 16, stride, batch_tokens)
        np.testing.assert_allclose(scores.nats, expected, rtol=1e-5)
        assert scores.nats.dtype == np.float64
        assert scores.tokens.tolist() == list(map(len, documents))


@pytest.mark.parametrize("vocab_size", [257, 1000])
def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(vocab_size):
    decoder = small_decoder(vocab_size=vocab_size)
    torch.nn.init.zeros_(decoder.head.weight)
    documents, counts = some_documents([50, 7])
    metrics = estimate_metrics(evaluate_perplexity(decoder, documents, counts, BOS, 16))
    assert metrics["perplexity"].value == pytest.approx(vocab_size, rel=1e-6)
    assert metrics["bits_per_byte"].value == pytest.approx(math.log2(vocab_size), rel=1e-6)
    assert metrics["perplexity"].ci95 == pytest.approx((vocab_size, vocab_size), rel=1e-6)


def test_every_token_is_reported_once_and_to_the_progress():
    documents, _ = some_documents([1, 16, 17, 70])
    told = []
    found = list(score_documents(small_decoder(), documents, BOS, 16, 3, 64, told.append))
    assert [sum(len(nats) for i, nats in found if i == d) for d in range(4)] == [1, 16, 17, 70]
    assert sum(told) == 104


@pytest.mark.parametrize("length", [1, 6, 7, 20, 25])
def test_every_token_is_scored_at_its_place_for_any_stride(length):
    documents, _ = some_documents([1, 6, 7, 19, 20, 21])
    decoder = small_decoder()
    for stride in range(1, length + 1, 1 + length // 8):
        scored = [np.zeros(len(document), dtype=int) for document in documents]
        for piece, nats in score_windows(decoder, cut_documents(documents, BOS, length, stride), 500):
            place = slice(piece.first, piece.first + len(nats))
            scored[piece.document][place] += 1
            assert piece.targets.tolist() == documents[piece.document][place].tolist()
        assert all((times == 1).all() for times in scored)


def test_the_mode_of_the_decoder_and_its_gradients_are_left_alone():
    decoder = small_decoder().train()
    documents, counts = some_documents([20])
    evaluate_perplexity(decoder, documents, counts, BOS, 16)
    assert decoder.training
    assert decoder.embedding.weight.grad is None


def test_batches_stay_within_their_budget_and_hold_every_window():
    documents, _ = some_documents([5, 40, 9, 16, 3, 100])
    pieces = list(cut_documents(documents, BOS, 16, 4))
    batches = list(batch_pieces(pieces, 40))
    assert sum(map(len, batches)) == len(pieces)
    assert all(max(map(len, batch)) * len(batch) <= 40 for batch in batches)
    assert [len(batch) for batch in batch_pieces(pieces[:3], 1)] == [1, 1, 1]
    with pytest.raises(ValueError, match="batch_tokens=0"):
        list(batch_pieces(pieces, 0))


def test_metrics_come_from_one_sum():
    scores = DocumentScores(np.array([10.0, 30.0]), np.array([5, 11]), np.array([20, 44]), np.array([4, 6]))
    metrics = {name: estimate.value for name, estimate in estimate_metrics(scores).items()}
    assert metrics["perplexity"] == pytest.approx(math.exp(40 / 16))
    assert metrics["word_perplexity"] == pytest.approx(math.exp(40 / 10))
    assert metrics["byte_perplexity"] == pytest.approx(math.exp(40 / 64))
    assert metrics["bits_per_byte"] == pytest.approx(math.log2(metrics["byte_perplexity"]))
    assert metrics["bits_per_byte"] == pytest.approx(math.log2(metrics["perplexity"]) * 16 / 64)


def test_what_cannot_be_told_is_none():
    scores = DocumentScores(np.array([9.0]), np.array([5]), np.array([5]), np.array([0]))
    metrics = estimate_metrics(scores)
    assert metrics["word_perplexity"].value is None
    assert metrics["perplexity"].ci95 is None
    huge = DocumentScores(np.array([9e5, 9e5]), np.array([9, 9]), np.array([9, 9]), np.array([1, 1]))
    assert estimate_metrics(huge)["word_perplexity"] == estimate_metrics(huge)["perplexity"]
    assert estimate_metrics(huge)["word_perplexity"].value is None


def test_bootstrap_is_seeded_and_covers_the_mean():
    random = np.random.default_rng(1)
    columns = np.stack([random.normal(3, 1, 400), np.ones(400)], axis=1)
    sums = bootstrap_sums(columns, seed=0)
    assert sums.shape == (2000, 2)
    assert (sums == bootstrap_sums(columns, seed=0)).all()
    assert (sums != bootstrap_sums(columns, seed=1)).any()
    low, high = interval(sums[:, 0] / sums[:, 1])
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(400), rel=0.15)
    assert low < columns[:, 0].mean() < high
