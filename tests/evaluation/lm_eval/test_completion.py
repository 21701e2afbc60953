"""Completions are what the decoder writes for each prompt alone, up to a stop string."""

import pytest

from tests.evaluation.tiny_run import small_decoder
from zoo.data import build_tokenizer
from zoo.evaluation.lm_eval import completion
from zoo.evaluation.lm_eval.completion import CompletionOptions, complete_prompts, cut_text, read_options

PROMPTS = [[256, 97, 98, 99], [256], [256, *range(60, 100)], [256, 32]]
NEW = 24


@pytest.fixture
def tokenizer(tmp_path):
    return build_tokenizer({"kind": "bytes"}, None, tmp_path)


@pytest.fixture(scope="module")
def decoder():
    return small_decoder().double()


def alone(decoder, tokenizer, prompt, **options):
    options = {"max_new_tokens": NEW, "temperature": 0.0, "stop_token": 256} | options
    return tokenizer.decode(decoder.generate([prompt], **options)[0])


@pytest.mark.parametrize("batch_tokens", [1, 80, 8_192])
def test_a_batch_gives_what_each_prompt_gives_alone(decoder, tokenizer, batch_tokens):
    expected = [alone(decoder, tokenizer, prompt) for prompt in PROMPTS]
    assert complete_prompts(decoder, tokenizer, PROMPTS, CompletionOptions(NEW), batch_tokens=batch_tokens) == expected
    assert len(set(expected)) == len(PROMPTS)


def test_text_ends_before_the_first_stop_string(decoder, tokenizer):
    whole = [alone(decoder, tokenizer, prompt) for prompt in PROMPTS]
    until = (whole[0][7:9], whole[2][3:4], "not in any of them")
    made = complete_prompts(decoder, tokenizer, PROMPTS, CompletionOptions(NEW, until))
    for text, found in zip(whole, made):
        assert text.startswith(found) and not any(stop in found for stop in until)
        assert found == text or any(text[len(found) :].startswith(stop) for stop in until)
    assert len(made[0]) <= 7 and len(made[2]) <= 3


def test_writing_ends_when_every_row_has_come_to_a_stop_string(tokenizer, monkeypatch):
    rows = zip(b"ab.cdefg", b"abcdef.g", strict=True)
    taken = []
    monkeypatch.setattr(completion, "stream", lambda *_: (taken.append(step) or list(step) for step in rows))
    made = complete_prompts(None, tokenizer, PROMPTS[:2], CompletionOptions(NEW, (".",)))
    assert made == ["ab", "abcdef"] and len(taken) == 7


def test_a_stop_string_of_several_bytes_is_found_between_tokens(tokenizer, monkeypatch):
    tokens = [*"ab 水 cd".encode(), None]
    monkeypatch.setattr(completion, "stream", lambda *_: iter([[token] for token in tokens]))
    assert complete_prompts(None, tokenizer, [[256]], CompletionOptions(NEW, ("水",))) == ["ab "]
    assert complete_prompts(None, tokenizer, [[256]], CompletionOptions(NEW, (" c",))) == ["ab 水"]
    assert complete_prompts(None, tokenizer, [[256]], CompletionOptions(NEW, ("x",))) == ["ab 水 cd"]


@pytest.mark.parametrize("batch_tokens", [1, 8_192])
def test_sampled_text_does_not_depend_on_the_batch_and_repeats_differ(decoder, tokenizer, batch_tokens):
    options = CompletionOptions(NEW, temperature=1.0, top_k=20, top_p=0.95)
    prompts = [*PROMPTS, PROMPTS[0], PROMPTS[0]]
    made = complete_prompts(decoder, tokenizer, prompts, options, seed=3, batch_tokens=batch_tokens)
    sampled = {"temperature": 1.0, "top_k": 20, "top_p": 0.95, "seed": 3}
    assert made[:4] == [alone(decoder, tokenizer, prompt, **sampled) for prompt in PROMPTS]
    assert len({made[0], made[4], made[5]}) == 3
    assert made != complete_prompts(decoder, tokenizer, prompts, options, seed=4, batch_tokens=batch_tokens)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, CompletionOptions(9)),
        ({"until": "\n", "max_gen_toks": 5, "max_tokens": 7}, CompletionOptions(5, ("\n",))),
        ({"until": ["a", ""], "max_new_tokens": "6"}, CompletionOptions(6, ("a",))),
        ({"do_sample": False, "temperature": 0.7, "top_k": 3}, CompletionOptions(9)),
        ({"temperature": 0.7}, CompletionOptions(9, temperature=0.7)),
        ({"do_sample": True, "top_p": 0.9, "top_k": -1}, CompletionOptions(9, temperature=1.0, top_p=0.9)),
        ({"do_sample": True, "temperature": 0, "top_k": 5}, CompletionOptions(9, temperature=0.0, top_k=5)),
    ],
)
def test_generation_keywords(given, expected):
    assert read_options(given, 9) == (expected, [])


def test_keywords_without_a_meaning_are_named():
    assert read_options({"until": [], "num_beams": 4, "best_of": 2}, 9) == (
        CompletionOptions(9),
        ["best_of", "num_beams"],
    )


def test_cut_text():
    assert cut_text("one two three", ["three", "two"]) == "one "
    assert cut_text("one two", []) == cut_text("one two", ["x"]) == "one two"
