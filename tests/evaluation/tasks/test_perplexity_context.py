import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.evaluation.scoring.test_perplexity import SCHEDULES
from tests.evaluation.tiny_run import make_run, small_decoder
from zoo.config import ConfigError
from zoo.data import DataError
from zoo.evaluation.evaluate import file_stem
from zoo.evaluation.scoring.stateful import score_stateful
from zoo.evaluation.tasks.perplexity_context import (
    PerplexityContextTask,
    Span,
    cut_spans,
    default_lengths,
    place_spans,
)
from zoo.runs.corpus import open_corpus
from zoo.runs.loaded_run import open_run

RANDOM = np.random.default_rng(1)
LENGTHS = [40, 24, 23, 90, 60, 5]
TEXTS = {
    "train": ["one two three\n" * 20],
    "test": ["".join(RANDOM.choice(list("abcdefgh "), size - 1)) + "." for size in LENGTHS],
}


@pytest.fixture
def run(tmp_path):
    return open_run(make_run(tmp_path, texts=TEXTS))


def naive_nats(run, text, start, stop, length):
    """Sum of nats of the tokens start..stop-1 of a text of bytes, seen after the ``length`` tokens before them."""
    begin = max(0, start - length)
    ids = [*text.encode()[begin:stop]] if begin else [run.document_token, *text.encode()[:stop]]
    ids = torch.tensor([ids])
    with torch.no_grad():
        logits = run.decoder(ids[:, :-1])[0].double()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")[-(stop - start) :].sum())


def spans_of(outcome):
    for sample in outcome.samples:
        name, _, span = sample["id"].rpartition(":")
        start, stop = map(int, span.split("-"))
        yield sample, TEXTS["test"][int(name.rpartition("/")[2].removesuffix(".txt"))], start, stop


@pytest.mark.parametrize("batch_tokens", [1, 50, 10_000])
def test_every_length_scores_the_same_targets(run, batch_tokens):
    options = {"lengths": [16, 4, 8, 4], "target": 8, "batch_tokens": batch_tokens}
    outcome = PerplexityContextTask(**options).evaluate(run.subject, 0)
    assert outcome.protocol["lengths"] == [4, 8, 16]
    assert outcome.protocol["documents"] == 4
    assert len({sample["id"] for sample in outcome.samples}) == len(outcome.samples) == 1 + 3 + 4 + 4
    for sample, text, start, stop in spans_of(outcome):
        assert stop - start == sample["tokens"] == sample["bytes"] == 8
        assert sample["nats"] == pytest.approx(
            {str(n): naive_nats(run, text, start, stop, n) for n in (4, 8, 16)}, rel=1e-5
        )
    records = {(r.variant, r.length, r.metric): r for r in outcome.records}
    totals = {n: sum(s["nats"][str(n)] for s in outcome.samples) for n in (4, 8, 16)}
    tokens = 8 * len(outcome.samples)
    for length in (4, 8, 16):
        assert records["context", length, "perplexity"].value == pytest.approx(math.exp(totals[length] / tokens))
        bits = records["context", length, "bits_per_byte"]
        assert bits.value == pytest.approx(totals[length] / tokens / math.log(2))
        assert bits.n == 4
        if length > 4:
            gain = records["gain", length, "bits_per_byte"]
            assert gain.value == pytest.approx(records["context", 4, "bits_per_byte"].value - bits.value)
            assert gain.ci95[0] <= gain.value <= gain.ci95[1]
            assert gain.higher_is_better
            assert not bits.higher_is_better
    assert ("gain", 4, "bits_per_byte") not in records


@pytest.mark.parametrize("layers", SCHEDULES.values(), ids=SCHEDULES)
def test_a_context_that_reaches_the_start_sees_what_a_state_remembers(tmp_path, layers):
    run = open_run(make_run(tmp_path, small_decoder(layers), TEXTS))
    corpus = open_corpus(run.subject)
    spans = [Span(index, int(size) - 4) for index, size in enumerate(corpus.sizes) if size > 4]
    found = score_stateful(run.decoder, corpus.documents(), run.document_token, 16)
    whole = {piece.document: nats for piece, nats in found}
    for span in spans:
        outcome = PerplexityContextTask(lengths=[span.start], target=4, spans=1).evaluate(run.subject, 0)
        nats = {(text, start): s["nats"][str(span.start)] for s, text, start, _ in spans_of(outcome)}
        text = bytes(corpus.span(span.document, 0, span.start + 4).tolist()).decode()
        assert nats[text, span.start] == pytest.approx(float(whole[span.document][-4:].sum()), rel=2e-5)


def test_the_document_token_stands_only_at_the_start_of_a_document(run):
    corpus = open_corpus(run.subject)
    for length in (4, 8, 30, 32):
        (piece,) = cut_spans(corpus, [Span(0, 32)], 8, length)
        assert piece.tokens[-8:].tolist() == list(TEXTS["test"][0][32:40].encode())
        assert (piece.tokens[0] == run.document_token) == (length == 32)
        assert len(piece) == length + 8 - (length < 32)
        assert piece.first == 32


@pytest.mark.parametrize("most", [1, 2, 3, 50])
def test_spans_fit_do_not_overlap_and_end_the_document(most):
    for target in (1, 3, 8):
        for context in (1, 10):
            for size in range(context + target, 60):
                starts = sorted(
                    span.start for span in place_spans(np.array([size]), np.array([0]), target, context, most)
                )
                assert starts[-1] == size - target
                assert starts[0] >= context
                assert all(b - a >= target for a, b in pairwise(starts))
                assert len(starts) == min(most, (size - context) // target)


def test_default_lengths_reach_as_far_as_documents_do():
    many = np.full(10, 5000)
    assert default_lengths(many, 512, 128) == [64, 128, 256, 384, 896]
    assert default_lengths(many, 16, 4) == [8, 12, 28]
    assert default_lengths(many, 48, 4) == [32, 44, 92]
    assert default_lengths(np.full(10, 300), 512, 128) == [64, 128]
    assert default_lengths(np.array([300, *[200] * 10]), 512, 128) == [64]
    assert default_lengths(np.array([300, 200]), 512, 128) == [64, 128]
    assert default_lengths(np.array([3]), 512, 128) == [64]
    assert default_lengths(many, 1, 1) == [1]


def test_defaults_names_and_warnings(run):
    outcome = PerplexityContextTask().evaluate(run.subject, 0)
    assert file_stem(PerplexityContextTask(), outcome, run.subject) == "perplexity_context-text-test"
    assert (outcome.protocol["lengths"], outcome.protocol["target"]) == ([8, 12, 28], 4)
    assert "Intervals over 3 documents are rough." in outcome.warnings
    assert any("Context 28 with its 4 targets is longer" in warning for warning in outcome.warnings)
    task = PerplexityContextTask(lengths=[8, 4], target=2, spans=1, max_documents=1)
    named = task.evaluate(run.subject, 0)
    assert (
        file_stem(task, named, run.subject) == "perplexity_context-text-test-max_documents1-lengths8_4-target2-spans1"
    )
    assert all(record.ci95 is None for record in named.records)
    single = PerplexityContextTask(lengths=[8]).evaluate(run.subject, 0)
    assert {record.variant for record in single.records} == {"context"}
    assert any("There is one context length, 8" in warning for warning in single.warnings)


def test_too_short_documents_and_wrong_options(run):
    message = r"has 204 tokens, the longest has 90: choose a smaller task\.lengths or task\.target"
    with pytest.raises(DataError, match=message):
        PerplexityContextTask(lengths=[8, 200]).evaluate(run.subject, 0)
    for name in ("target", "spans", "batch_tokens", "max_documents"):
        with pytest.raises(ConfigError, match=rf"task\.{name}=0"):
            PerplexityContextTask(**{name: 0}).evaluate(run.subject, 0)
    for lengths in ([], [0, 8]):
        with pytest.raises(ConfigError, match=r"task\.lengths=\[.*\]: expected"):
            PerplexityContextTask(lengths=lengths).evaluate(run.subject, 0)
