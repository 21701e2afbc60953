"""Samples made by hand, and scores of their answers by a slow way of their own: one full forward pass per candidate."""

import dataclasses

import numpy as np
import torch

from zoo.data.recall.samples import Answer, Sample
from zoo.model.decoder import Decoder, DecoderConfig

VOCABULARY = 257  # of the bytes tokenizer
DOCUMENT, NEWLINE = 256, 10


def build(layers, mixers=None, seed=0):
    """A decoder in fp64 whose choices are clear."""
    torch.manual_seed(seed)
    config = DecoderConfig(VOCABULARY, 32, len(layers), 4, list(layers), mixers or {}, separator_tokens=[NEWLINE])
    decoder = Decoder(config).double().eval()
    with torch.no_grad():
        decoder.embedding.weight.mul_(8)
    return decoder


def make_sample(random, length, spans, sizes=(), shared=0):
    """A sample with an answer at each span, and others of so many tokens, ``shared`` of them the answer's own.

    Args:
        spans: (start, stop) of each answer. sizes: tokens of each other.
    """
    tokens = np.concatenate([[DOCUMENT], random.integers(0, 256, size=length - 1)]).astype(np.int64)
    answers = []
    for start, stop in spans:
        own = tokens[start:stop].tolist()
        others = [(own[: min(shared, size - 1)] + random.integers(0, 256, size=size).tolist())[:size] for size in sizes]
        answers.append(Answer(start, stop, tuple(map(tuple, others))))
    return Sample(f"sample-{length}", tokens, tuple(answers))


def some_samples(seed=0):
    """One of each kind: single and several tokens, several answers, none, touching, at the very start, text behind."""
    random = np.random.default_rng(seed)
    return [
        make_sample(random, 40, [(33, 40)], [7, 7, 7, 7]),
        make_sample(random, 79, [(20, 21), (50, 51), (78, 79)], [1, 1, 1]),
        make_sample(random, 64, [(30, 34), (34, 36), (60, 64)], [4, 2, 1], shared=2),
        make_sample(random, 5, [(1, 5)], [2, 5]),
        make_sample(random, 23, [(8, 12), (15, 16)], [1, 1]),
        make_sample(random, 66, [(40, 43)], [3, 3, 2, 4], shared=1),
        make_sample(random, 17, [(14, 17)]),
        make_sample(random, 12, [(3, 4)], [5, 1]),
        make_sample(random, 9, []),
    ]


def with_known_answers(decoder, samples):
    """Every second sample with what the decoder says in place of its last answer."""
    made = []
    for number, sample in enumerate(samples):
        tokens = sample.tokens.copy()
        if number % 2 == 0 and sample.answers:
            last = sample.answers[-1]
            size = last.stop - last.start
            tokens[last.start : last.stop] = decoder.generate([tokens[: last.start].tolist()], size, temperature=0)[0]
        made.append(dataclasses.replace(sample, tokens=tokens))
    return made


def log_probabilities(decoder, tokens):
    """``(length - 1,)``: of each token after those before it; and whether each is the most likely one."""
    ids = torch.tensor(tokens)[None]
    with torch.no_grad():
        table = decoder(ids[:, :-1])[0].log_softmax(-1)
    return table.gather(1, ids[0, 1:, None])[:, 0].numpy(), (table.argmax(-1) == ids[0, 1:]).numpy()


def naive_score(decoder, sample, answer):
    """(nats, correct, log-likelihoods of the others)."""
    before = sample.tokens[: answer.start].tolist()
    found, best = log_probabilities(decoder, sample.tokens[: answer.stop].tolist())
    others = [log_probabilities(decoder, [*before, *other])[0][-len(other) :].sum() for other in answer.others]
    return -found[answer.start - 1 :].sum(), best[answer.start - 1 :].all(), others
