"""Generation: a batch gives what each prompt gives alone, and every option does what it says."""

from __future__ import annotations

import collections

import pytest
import torch

import zoo
from zoo.generation import Sampling
from zoo.generation.generate import choose
from zoo.model import Decoder, DecoderConfig

VOCABULARY = 50
MIXED = ["lightning", "softmax", "gqa", "lightning"]
SCHEDULES = {name: [name] * 2 for name in zoo.mixers.names()} | {"mixed": MIXED}
every_schedule = pytest.mark.parametrize("layers", SCHEDULES.values(), ids=SCHEDULES.keys())
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], list(range(40)) * 2, [2, 7]]


def build(layers=MIXED):
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(VOCABULARY, 32, len(layers), 4, layers)).double()
    with torch.no_grad():
        decoder.embedding.weight.mul_(20)  # logits far enough apart for choices to be clear
    return decoder


@every_schedule
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {},
        {"temperature": 0.7, "top_k": 10, "seed": 3},
        {"top_p": 0.8, "seed": -1},
        {"stop_token": 7},
    ],
    ids=str,
)
def test_a_ragged_batch_gives_what_each_prompt_gives_alone(layers, options):
    decoder = build(layers)
    together = decoder.generate(PROMPTS, 12, **options)
    assert together == [decoder.generate([prompt], 12, **options)[0] for prompt in PROMPTS]
    assert together == decoder.generate(PROMPTS[::-1], 12, **options)[::-1]
    if "stop_token" not in options:
        assert list(map(len, together)) == [12] * 4


@every_schedule
def test_greedy_generation_takes_the_most_likely_token_of_the_whole_sequence(layers):
    decoder = build(layers).eval()
    for prompt, made in zip(PROMPTS, decoder.generate(PROMPTS, 10, temperature=0)):
        with torch.no_grad():
            logits = decoder(torch.tensor([prompt + made]))[0]
        assert made == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_the_same_seed_gives_the_same_and_another_seed_another():
    decoder = build()
    texts = [decoder.generate(PROMPTS, 12, seed=seed, temperature=3.0) for seed in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len({str(t) for t in texts}) == 3


def test_sampling_does_not_touch_the_global_generator():
    decoder, before = build(), torch.get_rng_state()
    decoder.generate(PROMPTS, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_repeated_prompts_get_different_texts_and_the_first_is_that_of_the_prompt_alone():
    decoder = build()
    texts = decoder.generate([[5, 6]] * 4 + [[1]] + [[5, 6]], 12, temperature=3.0)
    copies = texts[:4] + texts[5:]
    assert len({tuple(t) for t in copies}) == 5
    assert copies[0] == decoder.generate([[5, 6]], 12, temperature=3.0)[0]
    greedy = decoder.generate([[5, 6]] * 3, 12, temperature=0)
    assert greedy[0] == greedy[1] == greedy[2]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}], ids=str)
def test_the_narrowest_choices_are_greedy(options):
    decoder = build()
    assert decoder.generate(PROMPTS, 12, **options) == decoder.generate(PROMPTS, 12, temperature=0)


@pytest.mark.parametrize("options", [{"top_k": VOCABULARY}, {"top_k": 1000}, {"top_p": 1.0}], ids=str)
def test_the_widest_choices_change_nothing(options):
    decoder = build()
    assert decoder.generate(PROMPTS, 12, **options) == decoder.generate(PROMPTS, 12)


def frequencies(probabilities, **options):
    """How often each token is drawn from given probabilities, in 20000 draws."""
    logits = torch.tensor(probabilities).log().expand(20000, -1)
    generators = [torch.Generator().manual_seed(i) for i in range(20000)]
    drawn = collections.Counter(choose(logits, Sampling(**options), generators).tolist())
    return [drawn[i] / 20000 for i in range(len(probabilities))]


P = [0.1, 0.4, 0.05, 0.25, 0.2]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, P),
        ({"top_k": 2}, [0, 0.4, 0, 0.25, 0]),
        ({"top_k": 4}, [0.1, 0.4, 0, 0.25, 0.2]),
        ({"top_p": 0.39}, [0, 0.4, 0, 0, 0]),
        ({"top_p": 0.5}, [0, 0.4, 0, 0.25, 0]),
        ({"top_p": 0.8}, [0, 0.4, 0, 0.25, 0.2]),
        ({"top_k": 3, "top_p": 0.5}, [0, 0.4, 0, 0.25, 0]),
        ({"temperature": 2.0}, [p**0.5 for p in P]),
        ({"temperature": 0.5}, [p**2 for p in P]),
    ],
    ids=str,
)
def test_tokens_are_drawn_with_their_probability_among_those_that_are_kept(options, kept):
    for got, want in zip(frequencies(P, **options), [p / sum(kept) for p in kept]):
        assert got == pytest.approx(want, abs=0.018)  # five deviations of 20000 draws
        assert (got == 0) == (want == 0)


def test_a_stop_token_ends_its_row_alone_and_is_not_returned():
    decoder = build()
    free = decoder.generate(PROMPTS, 12, temperature=0)
    stop = free[0][4]
    stopped = decoder.generate(PROMPTS, 12, temperature=0, stop_token=stop)
    assert stopped == [t[: t.index(stop)] if stop in t else t for t in free]
    assert len(stopped[0]) <= 4


def test_generation_ends_when_every_row_has_ended(monkeypatch):
    decoder = build()
    (first,) = decoder.generate([[3, 1]], 1, temperature=0)[0]
    steps = []
    inner = decoder.hidden
    monkeypatch.setattr(decoder, "hidden", lambda *args, **kwargs: steps.append(1) or inner(*args, **kwargs))
    assert decoder.generate([[3, 1]], 100, temperature=0, stop_token=first) == [[]]
    assert len(steps) == 1


def test_no_new_tokens_and_no_prompts():
    decoder = build()
    assert decoder.generate(PROMPTS, 0) == [[]] * 4
    assert decoder.generate([], 5) == []


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"seed": 4, "stop_token": 7, "top_k": 5}], ids=str)
def test_streaming_equals_generation(options):
    decoder = build()
    for prompt in PROMPTS:
        stream = decoder.stream(prompt, 12, **options)
        assert list(stream) == decoder.generate([prompt], 12, **options)[0]


def test_a_stream_yields_each_token_before_the_next_is_computed(monkeypatch):
    decoder, steps = build(), []
    inner = decoder.hidden
    monkeypatch.setattr(decoder, "hidden", lambda *args, **kwargs: steps.append(1) or inner(*args, **kwargs))
    for i, _ in enumerate(decoder.stream([3, 1], 5)):
        assert len(steps) == i + 1


@pytest.mark.parametrize("training", [True, False])
def test_generation_leaves_the_mode_as_it_was(training):
    decoder = build().train(training)
    decoder.generate(PROMPTS, 2)
    assert decoder.training == training
    stream = decoder.stream([1, 2], 5)
    next(stream)
    stream.close()
    assert decoder.training == training
    assert all(module.training == training for module in decoder.modules())


@torch.no_grad()
def test_the_cache_of_lightning_is_constant_and_that_of_softmax_grows():
    sizes = {}
    for name in ("lightning", "softmax"):
        decoder = build([name] * 2)
        cache, sizes[name] = decoder.new_cache(1), []
        for piece in torch.zeros(1, 60, dtype=torch.long).split(20, 1):
            decoder(piece, cache=cache)
            sizes[name].append(cache.nbytes())
    assert sizes["lightning"][0] == sizes["lightning"][1] == sizes["lightning"][2]
    assert sizes["softmax"][2] == 3 * sizes["softmax"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0\.1: expected a number >= 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0: expected a number >= 1"),
        ({"top_p": 0.0}, r"top_p=0\.0: expected a number in \(0, 1\]"),
        ({"top_p": 1.5}, r"top_p=1\.5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build().generate(PROMPTS, 3, **options)


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([[1], []], 3, "prompt 1 is empty: start it with the document token"),
        ([[VOCABULARY]], 3, "prompt 0 has a token outside the vocabulary of 50"),
        ([[1], [2], [-1]], 3, "prompt 2 has a token outside"),
        ([[1]], -1, "max_new_tokens=-1: expected a number >= 0"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, new, message):
    with pytest.raises(ValueError, match=message):
        build().generate(prompts, new)
