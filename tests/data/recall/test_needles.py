import random
import re

import pytest

from zoo.data.recall import words
from zoo.data.recall.base import Place
from zoo.data.recall.haystack import NoiseHaystack
from zoo.data.recall.samples import RecallError
from zoo.data.recall.tasks.kv import KeyValue
from zoo.data.recall.tasks.niah import Needle
from zoo.data.recall.tasks.passkey import Passkey

CASES = [(task, variant) for task in (Passkey, KeyValue, Needle) for variant in task.VARIANTS]
TYPED = [
    Needle(keys=4, value_type="word"),
    Needle(keys=3, value_type="uuid"),
    Needle(keys=3, values=2, queries=2, value_type="word", haystack_of_needles=True),
    KeyValue(distractors=0),
]
ALL = pytest.mark.parametrize(
    "task", [*(task(**task.VARIANTS[variant]) for task, variant in CASES), *TYPED], ids=lambda task: repr(task)
)
LENGTHS = {"bytes": (None, 1000, 2500), "bpe": (None, 1000, 2000)}


def solve(text):
    """Reads what stands before an answer, and finds the answer: what a perfect model does. None if it is not told."""
    context, newline, asked = text.rpartition("\n")
    context += newline
    if asked.endswith("The pass key is"):
        found = re.findall(r"^The pass key is (\d+)\. Remember it\.$", context, re.M)
        return found[0] if len(found) == 1 else None
    pair = re.fullmatch(r'"([\w-]+)":', asked)
    if pair:
        found = re.findall(rf'^"{pair[1]}": "([\w-]+)"$', context, re.M)
        return found[0] if len(found) == 1 else None
    several = re.fullmatch(r"In order, the (\w+)s for ([\w-]+) are(.*)", asked)
    if several:
        found = re.findall(rf"^The {several[1]} for {several[2]} is ([\w-]+)\.$", context, re.M)
        told = several[3].count(",")
        return found[told] if told < len(found) else None
    one = re.fullmatch(r"The (\w+) for ([\w-]+) is", asked)
    found = re.findall(rf"^The {one[1]} for {one[2]} is ([\w-]+)\.$", context, re.M)
    return found[0] if len(found) == 1 else None


def texts(sample, encoder):
    """What stands before each answer, and the answer."""
    for answer in sample.answers:
        before = encoder.decode(sample.tokens[: answer.start])
        yield before, encoder.decode(sample.tokens[answer.start : answer.stop]), answer


def value_of(text):
    assert text.startswith(" ")
    return text[1:].removeprefix('"')


@pytest.fixture(params=["bytes", "bpe"])
def name(request):
    return request.param


@pytest.fixture
def encoder(encoders, name):
    return encoders[name]


@ALL
def test_a_reader_of_the_context_answers_every_question(task, encoder, noise, name):
    for index, length in enumerate(LENGTHS[name]):
        for depth in (None, 0.0, 0.5, 1.0):
            sample = task.sample(Place(index, length, depth), encoder, noise)
            assert length in (None, len(sample))
            for before, text, answer in texts(sample, encoder):
                assert solve(before) == value_of(text)
                assert answer.references == (value_of(text),)
            bare = task.without_context(Place(index, length, depth), encoder, noise)
            asked = [(text, answer) for _, text, answer in texts(sample, encoder)]
            for (before, text, answer), (expected, same) in zip(texts(bare, encoder), asked, strict=True):
                assert solve(before) is None
                assert text == expected
                assert answer.others == same.others


@ALL
def test_others_are_wrong_values_of_the_context(task, encoder, noise):
    for index in range(5):
        sample = task.sample(Place(index, 1500), encoder, noise)
        for before, text, answer in texts(sample, encoder):
            others = [encoder.decode(other) for other in answer.others]
            assert len(set(others)) == len(others)
            assert text not in others
            lines = before.splitlines()
            for other in others:
                assert other.startswith(" ")
                assert any(line.endswith((f"{other}.", f'{other}"')) for line in lines)


@pytest.mark.parametrize(
    ("task", "answers", "others"),
    [
        (Passkey(), 1, 0),
        (KeyValue(), 1, 7),
        (Needle(), 1, 0),
        (Needle(keys=4), 1, 3),
        (Needle(values=4), 4, 3),
        (Needle(keys=4, queries=4), 4, 3),
        (Needle(keys=3, values=2, queries=2), 4, 5),
    ],
    ids=repr,
)
def test_answers_and_candidates_are_as_many_as_said(task, answers, others, encoder, noise):
    sample = task.sample(Place(0, None), encoder, noise)
    assert [len(answer.others) for answer in sample.answers] == [others] * answers


def test_most_variants_fit_256_bytes(encoders):
    assert max(map(len, words.ADJECTIVES + words.NOUNS)) == 7
    larger = {("niah", "multiquery"): 384, ("kv", "uuid"): 768}
    for task, variant in CASES:
        for index in range(40):
            sample = task(**task.VARIANTS[variant]).sample(
                Place(index, None), encoders["bytes"], NoiseHaystack(encoders["bytes"])
            )
            assert len(sample) <= larger.get((task.name, variant), 256)


@ALL
def test_a_value_is_told_once(task, encoder, noise):
    sample = task.sample(Place(1, 2000, 0.5), encoder, noise)
    context = encoder.decode(sample.tokens[: sample.answers[0].start])
    for _, text, _ in texts(sample, encoder):
        assert len(re.findall(rf"\b{value_of(text)}\b(?!-)", re.sub(r"\w+-\w+ is|\"[\w-]+\":", "", context))) == 1


def test_needles_of_a_haystack_fill_the_context(encoder, noise):
    text = encoder.decode(Needle(keys=4, haystack_of_needles=True).sample(Place(0, 2000), encoder, noise).tokens)
    lines = text.splitlines()
    assert all(re.fullmatch(r"The number for [a-z]+-[a-z]+ is \d{7}\.", line) for line in lines[1:-1])
    assert len(lines) > 40


@pytest.mark.parametrize("kind", ["hex", "uuid", "words"])
def test_pairs_fill_the_context(encoder, noise, kind):
    text = encoder.decode(KeyValue(kind=kind).sample(Place(0, 2000), encoder, noise).tokens)
    lines = text.partition("Keys and values:\n")[2].splitlines()
    assert all(re.fullmatch(r'"[\w-]+": "[\w-]+"', line) for line in lines[:-1])
    assert len(lines) > 20
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("task", [KeyValue(), Needle(keys=4), Needle(keys=4, haystack_of_needles=True)], ids=repr)
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_needle_stands_at_its_depth_among_the_others(encoder, noise, task, depth):
    for index in range(10):
        sample = task.sample(Place(index, 1200, depth), encoder, noise)
        ((before, text, _),) = texts(sample, encoder)
        lines = before.splitlines()[:-1]
        if isinstance(task, KeyValue):
            lines = lines[1 + lines.index("Keys and values:") :]
        (at,) = (n for n, line in enumerate(lines) if line.endswith((f" {value_of(text)}.", f'"{value_of(text)}"')))
        assert abs(at - depth * (len(lines) - 1)) <= 1  # the first line may be the end of one


@pytest.mark.parametrize(("values", "queries"), [(4, 1), (1, 4), (2, 2)])
def test_several_needles_have_no_single_depth(encoder, noise, values, queries):
    task = Needle(keys=queries, values=values, queries=queries)
    assert not task.has_depth
    assert task.sample(Place(0, 600, 0.5), encoder, noise).depth is None
    assert Needle(keys=4).has_depth


def test_keys_are_asked_in_another_order_than_they_stand(encoder, noise):
    orders = set()
    for index in range(60):
        sample = Needle(keys=3, queries=3).sample(Place(index, None), encoder, noise)
        before = encoder.decode(sample.tokens[: sample.answers[0].start])
        orders.add(tuple(before.index(value_of(text)) for _, text, _ in texts(sample, encoder)))
    ranks = {tuple(sorted(order).index(place) for place in order) for order in orders}
    assert len(ranks) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Needle(keys=0), "niah: keys=0"),
        (lambda: Needle(keys=2, queries=3), "niah: queries=3: expected at most keys=2"),
        (lambda: Needle(value_type="digit"), "niah: value_type='digit': expected one of number, word, uuid"),
        (lambda: Needle(keys=50, values=50), "niah: keys=50 x values=50: expected 188 needles at most"),
        (lambda: KeyValue(kind="b64"), "kv: kind='b64': expected one of hex, uuid, words"),
        (lambda: KeyValue(distractors=-1), "kv: distractors=-1"),
        (lambda: KeyValue(distractors=1000), "kv: distractors=1000: expected 188 at most"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(RecallError, match=re.escape(message)):
        make()


def test_words_are_different_and_of_one_kind():
    lists = (words.ADJECTIVES, words.NOUNS, words.NAMES, words.PLACES)
    flat = [word.lower() for part in lists for word in part]
    assert len(set(flat)) == len(flat)
    assert all(re.fullmatch("[a-z]+", word) for word in flat)
    assert all(word.istitle() for word in words.NAMES)


def test_distinct_draws_are_distinct_and_of_the_pool():
    rng = random.Random(0)
    assert sorted(words.draw_distinct(rng, words.NAMES, len(words.NAMES))) == sorted(words.NAMES)
    with pytest.raises(ValueError, match=r"n=19: the pool has only 18 members"):
        words.draw_distinct(rng, words.PLACES, 19)
    assert words.draw_new(rng, lambda rng: rng.choice("abc"), 2, ("b",)) in (["a", "c"], ["c", "a"])
