"""Neither the score of an answer nor the perplexity of a document depends on the batch it is in."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.cases import with_slow_shapes
from tests.evaluation.answer_samples import DOCUMENT, build, make_sample, with_known_answers
from zoo.evaluation.scoring.answers import score_samples
from zoo.evaluation.scoring.documents import score_documents


def decoder_of(name, options):
    """One layer, which the options of a mixer cannot say to be another one."""
    mixer = {key: value for key, value in options.items() if key != "layer"}
    return build([name], {name: mixer})


def samples():
    """Five of unequal lengths, whose answers are compared with others of one token and of several."""
    random = np.random.default_rng(0)
    several = [
        make_sample(random, length, [(length - 9, length - 7), (length - 3, length)], [3, 2], shared=1)
        for length in (11, 44, 70)
    ]
    return [*several, *(make_sample(random, length, [(length - 2, length)], [1] * 3) for length in (6, 37))]


def longer():
    random = np.random.default_rng(1)
    return [make_sample(random, length, [(20, 25), (length - 4, length)], [4, 6]) for length in (79, 75)]


def assert_same(got, want):
    for ours, theirs in zip(got, want, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.nats == pytest.approx(b.nats, rel=1e-4)
            assert (a.correct, a.rank, a.choices) == (b.correct, b.rank, b.choices)


@with_slow_shapes
def test_an_answer_scores_the_same_alone_and_in_any_batch(name, options):
    decoder = decoder_of(name, options)
    five = with_known_answers(decoder, samples())
    alone = score_samples(decoder, five, batch_tokens=1)
    assert [scores[-1].correct for scores in alone] == [True, False, True, False, True]
    assert_same(score_samples(decoder, five, batch_tokens=5 * 70), alone)
    assert_same(score_samples(decoder, longer() + five[::-1], batch_tokens=10_000)[:1:-1], alone)
    without_cache = score_samples(decoder, five, choices=1)
    for a, b in zip(alone, without_cache, strict=True):
        assert [score.nats for score in a] == pytest.approx([score.nats for score in b], rel=1e-4)


@with_slow_shapes
def test_a_document_scores_the_same_alone_and_in_any_batch(name, options):
    decoder, random = decoder_of(name, options), np.random.default_rng(0)
    documents = [random.integers(0, 256, size=size) for size in (1, 20, 47, 70, 64)]
    more = [random.integers(0, 256, size=size) for size in (79, 75)]
    nats = []
    for batch_tokens, texts in ((1, documents), (5 * 70, documents), (10_000, documents + more)):
        totals = np.zeros(len(texts))
        for document, part in score_documents(decoder, texts, DOCUMENT, 48, 20, batch_tokens):
            totals[document] += part.sum(dtype=np.float64)
        nats.append(totals[: len(documents)])
    np.testing.assert_allclose(nats[1], nats[0], rtol=1e-4)
    np.testing.assert_allclose(nats[2], nats[0], rtol=1e-4)
