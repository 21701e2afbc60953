"""Scores of answers are what slow ways of their own say, whatever else is in the batch."""

import dataclasses
import math
from functools import partial

import numpy as np
import pytest
import torch

from tests.evaluation.answer_samples import (
    DOCUMENT,
    NEWLINE,
    VOCABULARY,
    build,
    make_sample,
    naive_score,
    some_samples,
    with_known_answers,
)
from tests.tiers import in_ci, named
from zoo.data import build_tokenizer
from zoo.data.recall.samples import Answer, Sample
from zoo.evaluation.scoring import answer_passes
from zoo.evaluation.scoring.answers import score_samples
from zoo.generation.prompts import read_in_pieces

SCHEDULES = {"softmax": ["softmax"] * 2, "lightning": ["lightning"] * 2, "hybrid": ["lightning", "window", "softmax"]}
OPTIONS = {"window": {"window": 9, "sink_tokens": 1}}
every_schedule = pytest.mark.parametrize("layers", SCHEDULES.values(), ids=SCHEDULES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer({"kind": "bytes"}, None, tmp_path_factory.mktemp("cache"))


def flat(scores):
    return [score for of_sample in scores for score in of_sample]


@every_schedule
def test_correct_is_what_greedy_generation_gives(layers):
    decoder = build(layers, OPTIONS)
    samples = with_known_answers(decoder, some_samples())
    scores = score_samples(decoder, samples)
    answers = [(sample, answer) for sample in samples for answer in sample.answers]
    for (sample, answer), score in zip(answers, flat(scores), strict=True):
        true = sample.tokens[answer.start : answer.stop].tolist()
        (made,) = decoder.generate([sample.tokens[: answer.start].tolist()], len(true), temperature=0)
        assert score.correct == (made == true)
        assert score.tokens == len(true)
    assert all(of_sample[-1].correct for of_sample in scores[::2] if of_sample)
    assert not all(score.correct for score in flat(scores))


def test_one_wrong_token_anywhere_makes_an_answer_wrong():
    decoder, random = build(SCHEDULES["hybrid"], OPTIONS), np.random.default_rng(0)
    (right,) = with_known_answers(decoder, [make_sample(random, 30, [(26, 30)])])
    wrong = []
    for place in range(26, 30):
        tokens = right.tokens[:place].tolist()
        tokens.append((int(right.tokens[place]) + 1) % 256)
        if place < 29:
            tokens += decoder.generate([tokens], 29 - place, temperature=0)[0]
        wrong.append(dataclasses.replace(right, tokens=np.array(tokens)))
    assert [score.correct for score in flat(score_samples(decoder, [right, *wrong]))] == [True] + [False] * 4


@pytest.mark.parametrize(("name", "piece"), [*in_ci(("softmax", 2048), ("lightning", 2048)), ("hybrid", 7)])
def test_scores_are_those_of_a_whole_pass_per_candidate(name, piece, monkeypatch):
    """However many tokens are read at a time."""
    monkeypatch.setattr(answer_passes, "read_in_pieces", partial(read_in_pieces, piece=piece))
    decoder = build(SCHEDULES[name], OPTIONS)
    samples = with_known_answers(decoder, some_samples(1))
    answers = [(sample, answer) for sample in samples for answer in sample.answers]
    naive = [naive_score(decoder, sample, answer) for sample, answer in answers]
    for choices, batch_tokens in ((8, 1), (8, 150), (8, 10_000), (3, 10_000), (2, 1), (1, 10_000)):
        scores = flat(score_samples(decoder, samples, choices=choices, batch_tokens=batch_tokens))
        for (_, answer), (nats, correct, others), score in zip(answers, naive, scores, strict=True):
            compared = others[: choices - 1]
            sizes = [len(other) for other in answer.others[: choices - 1]]
            own = answer.stop - answer.start
            per_token = sum(other / size >= -nats / own for other, size in zip(compared, sizes))
            assert score.rank_per_token == (None if {own, *sizes} == {own} else per_token)
            assert score.nats == pytest.approx(nats, rel=1e-5)
            assert score.correct == correct
            assert score.choices == 1 + len(compared)
            assert score.rank == (sum(other >= -nats for other in compared) if compared else None)
            assert score.generated is None
        assert {score.rank for score in scores} >= ({None, 0, 1, 2} if choices == 8 else {None})


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_ties_count_against_the_model(batch_tokens):
    """Without a head all sequences of n tokens have the likelihood V^-n, so that no longer other is as likely."""
    decoder = build(["softmax", "lightning"])
    torch.nn.init.zeros_(decoder.head.weight)
    samples = some_samples()
    scores = score_samples(decoder, samples, batch_tokens=batch_tokens)
    for sample, of_sample in zip(samples, scores, strict=True):
        for answer, score in zip(sample.answers, of_sample, strict=True):
            size = answer.stop - answer.start
            assert score.nats == pytest.approx(size * math.log(VOCABULARY))
            if answer.others:
                assert score.rank == sum(len(other) <= size for other in answer.others)


def test_others_are_the_first_that_differ():
    random = np.random.default_rng(0)
    plain = make_sample(random, 30, [(26, 30)], [4, 4, 4, 1, 4])
    (answer,) = plain.answers
    one, two, three, *rest = answer.others
    own = tuple(plain.tokens[26:].tolist())
    repeated = dataclasses.replace(answer, others=(one, own, one, two, one, own, three, *rest))
    decoder = build(["softmax"])
    for choices in (2, 4, 8):
        (want,), (got,) = score_samples(
            decoder, [plain, dataclasses.replace(plain, answers=(repeated,))], choices=choices
        )
        assert got == want
    (only_itself,) = score_samples(decoder, [dataclasses.replace(plain, answers=(Answer(26, 30, (own, own)),))])
    assert (only_itself[0].rank, only_itself[0].choices) == (None, 1)


def relabeled(decoder, samples, wanted):
    """The same decoder of the same samples, but for the names of tokens: what it says often is called ``wanted``."""
    prompts = [sample.tokens[: answer.start].tolist() for sample in samples for answer in sample.answers]
    names = np.arange(VOCABULARY)
    for place, name in enumerate(wanted):
        said = [names[token] for made in decoder.generate(prompts, 8, temperature=0) for token in made[2:]]
        counts = np.bincount([token for token in said if token not in wanted[:place]], minlength=VOCABULARY)
        often = counts.argmax()
        names = np.array([{often: name, name: often}.get(token, token) for token in names])
    with torch.no_grad():
        decoder.embedding.weight[torch.tensor(names)] = decoder.embedding.weight.clone()
    return [dataclasses.replace(sample, tokens=names[sample.tokens]) for sample in samples]


@pytest.mark.parametrize("layers", named(SCHEDULES, "lightning"))
def test_text_ends_with_its_line_or_document(layers, tokenizer):
    decoder = build(layers, OPTIONS)
    samples = relabeled(decoder, some_samples(2), [NEWLINE, DOCUMENT])
    ends = set()
    for generate in (1, 12):
        scores = score_samples(decoder, samples, generate=generate, tokenizer=tokenizer)
        for sample, of_sample in zip(samples, scores, strict=True):
            for answer, score in zip(sample.answers, of_sample, strict=True):
                count = max(generate, answer.stop - answer.start)
                (made,) = decoder.generate([sample.tokens[: answer.start].tolist()], count, temperature=0)
                end = next((at for at, token in enumerate(made) if token in (NEWLINE, DOCUMENT)), count)
                assert score.generated == bytes(made[:end]).decode(errors="replace")
                ends.add(made[end] if 0 < end < count else None)
    assert ends == {NEWLINE, DOCUMENT, None}


def test_right_answers_are_generated(tokenizer):
    decoder = build(["softmax", "lightning"])
    samples = with_known_answers(decoder, [s for s in some_samples(3) if s.answers])
    scores = flat(score_samples(decoder, samples, generate=1, tokenizer=tokenizer))
    answers = [(sample, answer) for sample in samples for answer in sample.answers]
    for (sample, answer), score in zip(answers, scores, strict=True):
        true = bytes(sample.tokens[answer.start : answer.stop].tolist())
        if score.correct and b"\n" not in true:
            assert score.generated == true.decode(errors="replace")


@pytest.mark.parametrize("training", [False, True])
def test_the_decoder_stays_as_it_was(training):
    noisy = {"block": 16, "top_k": 1, "estimator": "gumbel"}  # while it is trained
    decoder = build(["learned_sparse", "softmax"], {"learned_sparse": noisy}).train(training)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    scores = score_samples(decoder, some_samples())
    assert all(module.training == training for module in decoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in decoder.state_dict().items())
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert scores == score_samples(decoder.eval(), some_samples())


def test_low_precision_stays_close():
    """The exact likelihoods are those of fp64; bf16 keeps 8 bits."""
    decoder, samples = build(SCHEDULES["hybrid"], OPTIONS), some_samples()
    exact = flat(score_samples(decoder, samples))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        low = flat(score_samples(decoder.to(dtype), samples))
        np.testing.assert_allclose([s.nats for s in low], [s.nats for s in exact], rtol=tolerance)


def test_progress_counts_every_sample():
    done = []
    samples = some_samples()
    score_samples(build(["softmax"]), samples, batch_tokens=100, progress=done.append)
    assert sum(done) == len(samples)
    assert len(done) > 2
    assert score_samples(build(["softmax"]), []) == []


def sample_of(*answers, tokens=range(20)):
    return Sample("few", np.array(tokens), tuple(Answer(*answer) for answer in answers))


@pytest.mark.parametrize(
    ("sample", "options", "message"),
    [
        (sample_of((3, 5)), {"choices": 0}, "choices=0"),
        (sample_of((3, 5)), {"generate": -1}, "generate=-1"),
        (sample_of((3, 5)), {"generate": 4}, "generate=4 without a tokenizer"),
        (sample_of((3, 5)), {"batch_tokens": 0}, "batch_tokens=0"),
        (sample_of((0, 5)), {}, "sample few: the answer 0:5 is not in its 20 tokens"),
        (sample_of((3, 3)), {}, "sample few: the answer 3:3"),
        (sample_of((18, 21)), {}, "sample few: the answer 18:21"),
        (sample_of((3, 5), (4, 6)), {}, "sample few: the answer 4:6"),
        (sample_of((3, 5, ((),))), {}, "sample few: a value to compare with the answer has no tokens"),
        (sample_of((3, 5, ((4, 999),))), {}, "sample few has a token outside the vocabulary of 257"),
        (sample_of((3, 5), tokens=[256, 999, 2, 3, 4]), {}, "sample few has a token outside the vocabulary of 257"),
    ],
)
def test_what_cannot_be_scored_is_named(sample, options, message):
    with pytest.raises(ValueError, match=message):
        score_samples(build(["softmax"]), [sample], **options)
