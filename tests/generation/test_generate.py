"""Generation: a batch gives what each prompt gives alone, and every option does what it says."""

from __future__ import annotations

import collections
import subprocess
import sys

import numpy as np
import pytest
import torch

import zoo
from tests.tiers import in_ci, named
from zoo.generation import Sampling
from zoo.generation.generate import choose, stream
from zoo.model import Decoder, DecoderConfig

VOCABULARY = 50
MIXED = ["lightning", "softmax", "gqa", "lightning"]
SCHEDULES = {name: [name] for name in zoo.mixers.names()} | {"mixed": MIXED}
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
        {"temperature": 0.7, "top_k": 10, "seed": 3},
        *in_ci({"temperature": 0}, {}, {"top_p": 0.8, "seed": -1}, {"stop_token": 7}),
    ],
    ids=str,
)
def test_a_ragged_batch_gives_what_each_prompt_gives_alone(layers, options):
    decoder = build(layers)
    together = decoder.generate(PROMPTS, 8, **options)
    assert together == [decoder.generate([prompt], 8, **options)[0] for prompt in PROMPTS]
    assert together == decoder.generate(PROMPTS[::-1], 8, **options)[::-1]
    if "stop_token" not in options:
        assert list(map(len, together)) == [8] * 4


@every_schedule
def test_greedy_generation_takes_the_most_likely_token_of_the_whole_sequence(layers):
    decoder = build(layers).eval()
    for prompt, made in zip(PROMPTS, decoder.generate(PROMPTS, 8, temperature=0)):
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


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_p": 1e-9},
        {"temperature": 1e-39},
        *in_ci({"top_p": 1e-320}, *({"temperature": t} for t in (1e-6, 1e-37, 1e-45, 1e-46, 5e-324))),
    ],
    ids=str,
)
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


@pytest.mark.parametrize("options", [{"seed": 4, "stop_token": 7, "top_k": 5}, *in_ci({}, {"temperature": 0})], ids=str)
def test_streaming_equals_generation(options):
    decoder = build()
    for prompt in PROMPTS:
        assert list(decoder.stream(prompt, 12, **options)) == decoder.generate([prompt], 12, **options)[0]


def test_a_stream_yields_each_token_before_the_next_is_computed(monkeypatch):
    decoder, steps = build(), []
    inner = decoder.hidden
    monkeypatch.setattr(decoder, "hidden", lambda *args, **kwargs: steps.append(1) or inner(*args, **kwargs))
    for i, _ in enumerate(decoder.stream([3, 1], 5)):
        assert len(steps) == i + 1


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_that_of_the_caller_before_between_and_after_tokens(training):
    decoder = build(["lightning", "learned_sparse"]).train(training)
    decoder.blocks[1].train(not training)  # a part that is frozen, say
    before = [module.training for module in decoder.modules()]

    def unchanged():
        return [m.training for m in decoder.modules()] == before and torch.is_grad_enabled()

    alone = decoder.generate(PROMPTS[:1], 5)
    assert unchanged()
    streams, made = [decoder.stream(PROMPTS[0], 5) for _ in range(3)], [[], [], []]
    for _ in range(5):
        for one, tokens in zip(streams, made):
            tokens.append(next(one))
            assert unchanged()
    assert made == alone * 3
    left = decoder.stream(PROMPTS[0], 5)
    next(left)
    del left, streams
    assert unchanged()


def test_each_forward_pass_is_in_evaluation_mode():
    decoder, modes = build().train(), []
    decoder.embedding.register_forward_hook(lambda module, *_: modes.append((module.training, torch.is_grad_enabled())))
    for _ in decoder.stream([1, 2], 3):
        decoder(torch.tensor([[1]]))
    assert modes == [(False, False), (True, True)] * 3


@pytest.mark.slow
def test_a_stream_that_is_not_used_up_is_silent_at_exit():
    code = (
        "from tests.generation.test_generate import build\n"
        "decoder = build().train()\n"
        "stream = decoder.stream([1, 2], 5)\n"
        "next(stream)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 3, "top_p": 0.5}], ids=str)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_step_and_the_prompt(options, number):
    decoder, calls = build(), []

    def spoil(module, arguments, logits):
        calls.append(1)
        if len(calls) == 3:
            logits[1, ..., 7] = number

    decoder.head.register_forward_hook(spoil)
    with pytest.raises(ValueError, match=rf"the largest logit at new token 2, of prompt 1 is {number}: the model"):
        decoder.generate(PROMPTS, 5, **options)
    assert len(calls) == 3


def test_tokens_that_are_ruled_out_are_no_error():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for options in ({}, {"temperature": 0}, {"temperature": 1e-40}, {"top_p": 0.5}):
        assert choose(logits, Sampling(**options), [torch.Generator()]).tolist() == [1]
    with pytest.raises(ValueError, match="the largest logit in row 0 is -inf"):
        choose(torch.full((1, 3), -torch.inf), Sampling(), [torch.Generator()])


FORMS = {
    "lists": [[3, 1, 4], [1, 5, 9]],
    "tuples": ((3, 1, 4), (1, 5, 9)),
    "tensors": [torch.tensor([3, 1, 4]), torch.tensor([1, 5, 9], dtype=torch.int32)],
    "arrays": [np.array([3, 1, 4]), np.array([1, 5, 9], dtype=np.uint16)],
    "a tensor": torch.tensor([[3, 1, 4], [1, 5, 9]]),
    "an array": np.array([[3, 1, 4], [1, 5, 9]], dtype=np.uint8),
    "numbers of numpy": [[np.int64(3), np.int32(1), 4], [1, 5, 9]],
}


@pytest.mark.parametrize("prompts", FORMS.values(), ids=FORMS.keys())
def test_prompts_come_in_any_form_of_integers(prompts):
    decoder = build()
    want = decoder.generate(FORMS["lists"], 4)
    assert decoder.generate(prompts, 4) == want
    assert list(decoder.stream(prompts[0], 4)) == want[0]


@pytest.mark.parametrize("layers", named(SCHEDULES, "mixed", "window", "topk"))
def test_a_prompt_is_read_in_pieces_with_the_same_result(layers, monkeypatch):
    decoder, widths = build(layers), []
    want = decoder.generate(PROMPTS, 6, temperature=0)
    inner = decoder.hidden
    monkeypatch.setattr(decoder, "hidden", lambda ids, *a, **b: widths.append(ids.shape[1]) or inner(ids, *a, **b))
    for piece, read in ((33, [33, 33, 14]), (1, [1] * 80), (80, [80]))[: 3 if layers == MIXED else 1]:
        widths.clear()
        assert decoder.generate(PROMPTS, 6, temperature=0, prefill_tokens=piece) == want
        assert widths == read + [1] * 5


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
        ({"temperature": -0.1}, r"temperature=-0\.1: expected a finite number >= 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf: expected a finite number"),
        ({"top_k": 0}, "top_k=0: expected a whole number >= 1"),
        ({"top_k": 2.5}, r"top_k=2\.5: expected a whole number"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"seed": 1.5}, r"seed=1\.5: expected a whole number"),
        ({"stop_token": "a"}, "stop_token='a': expected a whole number"),
        ({"prefill_tokens": 0}, "prefill_tokens=0: expected a whole number >= 1"),
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
        ([[VOCABULARY]], 3, "prompt 0 has a token outside the vocabulary of 50, 50: is it of another"),
        ([[1], [2], [-1]], 3, "prompt 2 has a token outside the vocabulary of 50, -1"),
        ([[1 << 70]], 3, "prompt 0 is .*: expected token ids"),
        ([[1]], -1, "max_new_tokens=-1: expected a whole number >= 0"),
        ([[1]], 1.5, r"max_new_tokens=1\.5: expected a whole number >= 0"),
        ([[1]], None, "max_new_tokens=None: expected a whole number >= 0"),
        ([[1], [0.5]], 3, r"prompt 1 is of torch\.float32: expected token ids, which are integers"),
        (torch.ones(2, 3), 3, r"prompt 0 is of torch\.float32"),
        (np.ones((2, 3)), 3, r"prompt 0 is of torch\.float"),
        ([[True]], 3, r"prompt 0 is of torch\.bool"),
        ([1, 2], 3, r"prompt 0 is 1: expected a list of token ids; one prompt is \[prompt\]"),
        (torch.tensor([1, 2]), 3, r"prompt 0 is tensor\(1\): expected a list of token ids"),
        (torch.tensor(1), 3, r"prompts=tensor\(1\): expected a list of prompts"),
        ("Once", 3, "prompts='Once': expected a list of prompts"),
        ({"input_ids": [1]}, 3, "prompts=.*input_ids.*: expected a list of prompts"),
        (None, 3, "prompts=None: expected a list of prompts"),
        (["Once"], 3, "prompt 0 is 'Once': expected token ids, as a tokenizer gives them"),
        ([[1, "a"]], 3, r"prompt 0 is \[1, 'a'\]: expected token ids"),
        ([[[1, 2]]], 3, "prompt 0 has 2 dimensions"),
        ([[[1, 2], [3]]], 3, "prompt 0 is .*: expected token ids"),
        ([None], 3, "prompt 0 is None: expected token ids"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts, new, message):
    decoder = build()
    with pytest.raises(ValueError, match=message) as refusal:
        decoder.generate(prompts, new)
    assert "\n" not in str(refusal.value)
    with pytest.raises(ValueError):
        next(stream(decoder, prompts, new, Sampling()))
