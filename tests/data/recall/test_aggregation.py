"""Variable tracking, common words and frequent words: counting over the text alone finds every answer."""

import random
import re
from collections import Counter
from itertools import islice, pairwise

import pytest

from tests.data.recall.reading import needed, parts
from tests.tiers import in_ci
from zoo.data.recall.base import Place
from zoo.data.recall.haystack import NoiseHaystack
from zoo.data.recall.samples import RecallError
from zoo.data.recall.tasks.cwe import RIVALS, CommonWords
from zoo.data.recall.tasks.fwe import FrequentWords, zipf_counts
from zoo.data.recall.tasks.vt import VariableTracking
from zoo.data.recall.words import NOUNS

TASKS = (VariableTracking, CommonWords, FrequentWords)
CASES = [pytest.param(task, name, id=f"{task.name}-{name}") for task in TASKS for name in task.VARIANTS]
FIRST = [(task, next(iter(task.VARIANTS))) for task in TASKS]
REST = [(task, name) for task in TASKS for name in [*task.VARIANTS][1:]]
LENGTHS = (None, 256, 512, 1000)


def solve_variables(text):
    """Right answers, in order, and every value that could be one."""
    context, asked = text.rsplit("\n", 1)
    holds = {}
    for name, value in re.findall(r"^VAR ([A-Z]+) = (?:VAR )?(\w+)\.$", context, re.MULTILINE):
        assert name not in holds
        holds[name] = holds[value] if value in holds else int(value)
    if found := re.fullmatch(r"Which number does VAR (\w+) hold\? VAR \1 holds", asked):
        return [str(holds[found[1]])], {str(number) for number in holds.values()}
    found = re.match(r"The variables that hold (\d+), in order of assignment, are VAR", asked)
    return [name for name, number in holds.items() if number == int(found[1])], set(holds)


def listed(text):
    """Words of the list: the lines after the instruction."""
    body = re.split(r"words? of this list\.\n", text)
    assert len(body) == 2
    words = body[1].split("\n")[:-1]
    assert all(re.fullmatch(r" [a-z]+(-[a-z]+)*", word) for word in words)
    return [word[1:] for word in words]


def solve_common(text):
    words, asked = listed(text), text.rsplit("\n", 1)[1]
    counts = Counter(words)
    found = re.match(r"The (?:(\d+) )?most common words? of the list", asked)
    ranked = counts.most_common()
    many = int(found[1] or 1)
    assert ranked[many - 1][1] == 8 and ranked[many][1] <= 2
    return sorted((word for word, _ in ranked[:many]), key=words.index), set(words)


def solve_frequent(text):
    words, asked = listed(text), text.rsplit("\n", 1)[1]
    found = re.match(r"The (?:(\d+) )?most frequent words? of the list", asked)
    many = int(found[1] or 1)
    ranked = Counter(words).most_common()
    for (_, above), (_, below) in pairwise(ranked[: many + 1]):
        assert above >= below + 2
    return [word for word, _ in ranked[:many]], set(words)


SOLVERS = {"vt": solve_variables, "cwe": solve_common, "fwe": solve_frequent}


def check(task, sample, encoder):
    read = parts(sample, encoder)
    right, pool = SOLVERS[task.name](read[0][0])
    assert [answer for _, answer, _ in read] == [f" {value}" for value in right]
    for _, answer, others in read:
        assert answer not in others and len(others) == len(set(others)) > 0
        assert {other[1:] for other in others} <= pool and all(other[0] == " " for other in others)
    end = encoder.decode(sample.tokens).removeprefix(read[0][0])
    assert end == ",".join(f" {value}" for value in right)


@pytest.mark.parametrize(("kind", "variant"), [*FIRST, *in_ci(*REST)])
def test_a_reader_of_the_text_finds_every_answer(kind, variant, encoder, noise):
    task = kind(**kind.VARIANTS[variant])
    for index in range(60):
        length = LENGTHS[index % len(LENGTHS)]
        place = Place(index, length)
        least = needed(task, place, encoder)
        if length is not None and least > length:
            with pytest.raises(RecallError, match=f"need {least} tokens.*length={length}.*easier variant"):
                task.sample(place, encoder, noise)
            continue
        sample = task.sample(place, encoder, noise)
        assert len(sample) == (least if length is None else length)
        check(task, sample, encoder)


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_a_question_alone_does_not_tell(kind, variant, encoder, noise):
    task = kind(**kind.VARIANTS[variant])
    for index in range(20):
        alone = parts(task.without_context(Place(index, 1000), encoder, noise), encoder)
        whole = parts(task.sample(Place(index, 1000), encoder, noise), encoder)
        for (text, answer, others), (context, known, offered) in zip(alone, whole, strict=True):
            assert (answer, others) == (known, offered)
            assert answer not in text and answer in context


@pytest.mark.parametrize(("kind", "variant"), CASES)
def test_a_length_that_is_too_short_ends_in_an_error(kind, variant, encoder, noise):
    with pytest.raises(RecallError, match=rf"{kind.name}: .* more than length=40.*longer task.lengths"):
        kind(**kind.VARIANTS[variant]).sample(Place(0, 40), encoder, noise)


@pytest.mark.parametrize(
    "task",
    [
        VariableTracking(hops=7, chains=5),
        VariableTracking(hops=3, chains=4, ask="names"),
        CommonWords(common=6),
        FrequentWords(top=8),
    ],
    ids=lambda task: task.name,
)
def test_more_of_everything(task, encoders):
    noise = NoiseHaystack(encoders["bytes"])
    for index in range(10):
        sample = task.sample(Place(index, 1500), encoders["bytes"], noise)
        check(task, sample, encoders["bytes"])


def test_the_order_of_chains_does_not_tell_and_chains_mix():
    first = mixed = 0
    for index in range(300):
        facts = VariableTracking().draw(random.Random(index), None, None)
        numbers = re.findall(r"\d+", "".join(facts.facts))
        assert len(numbers) == 2
        first += facts.questions[0].answer.strip() == numbers[0]
        mixed += next(n for n, fact in enumerate(facts.facts) if numbers[1] in fact) < 3
    assert 120 < first < 180
    assert mixed > 240  # in 2 of the 20 orders one chain stands before the other


def test_hops_are_needed():
    for hops in (1, 2, 4):
        task = VariableTracking(hops=hops)
        facts = task.draw(random.Random(hops), None, None)
        (question,) = facts.questions
        name, steps = re.search(r"VAR (\w+) hold\?", question.prompt)[1], 0
        while source := re.search(rf"^VAR {name} = VAR (\w+)\.$", "".join(facts.facts), re.MULTILINE):
            name, steps = source[1], steps + 1
        assert steps == hops


@pytest.mark.parametrize("repeats", [1, 2])
def test_words_do_not_run_out(repeats, encoder, noise):
    task = CommonWords(uncommon_repeats=repeats)
    limit = next(length for length in range(500, 3000) if task._adjectives(length + 1, encoder))
    for length in (limit, limit + 1, 20_000):
        sample = task.sample(Place(0, length), encoder, noise)
        assert len(sample) == length
        check(task, sample, encoder)
        text = parts(sample, encoder)[0][0]
        counts = sorted(Counter(listed(text)).values())
        assert counts[-3:] == [8, 8, 8] and counts[-4] == repeats
        assert ("-" in text) == (length > limit)


def test_a_cut_line_stands_outside_the_list_and_never_ends_like_a_common_word(encoder, noise):
    task, found = CommonWords(), 0
    for index in range(100):
        facts, rng, _ = task._facts(Place(index, 700), encoder)
        common = tuple(question.answer.strip() for question in facts.questions)
        for line in islice(facts.filler(rng), 400):
            assert not line.strip().endswith(common)
        found += any(noun.endswith(common) and noun not in common for noun in NOUNS)
        text = parts(task.sample(Place(index, 700), encoder, noise), encoder)[0][0]
        front = text[: text.index("Remember")]
        assert front.count("\n") <= 1 and front[-1:] in ("", "\n")
    assert found > 3  # samples in which "corn", say, is common, and "acorn" must not be cut


def test_common_words_stand_among_rivals(encoders):
    task = CommonWords(common=2, common_repeats=5, uncommon_repeats=3)
    facts = task.draw(random.Random(0), None, encoders["bytes"])
    counts = Counter(facts.facts)
    assert sorted(counts.values()) == [3] * RIVALS + [5, 5]
    for question in facts.questions:
        assert len(question.others) == RIVALS + 1


@pytest.mark.parametrize("length", [1000, 8000, 40_000])
def test_frequencies_follow_the_zeta_law_at_every_length(length, encoders):
    task = FrequentWords()
    sample = task.sample(Place(0, length), encoders["bytes"], NoiseHaystack(encoders["bytes"]))
    words = listed(parts(sample, encoders["bytes"])[0][0])
    shares = [count / len(words) for _, count in Counter(words).most_common(4)]
    for rank, share in enumerate(shares, 1):  # 6 / pi^2 = 0.608 for the first
        assert share == pytest.approx(0.6079 / rank**2, rel=0.1, abs=0.02)


def test_counts_are_strict_and_grow_by_lines():
    for top in (1, 2, 3, 7):
        for lines in (*range(1, 60), 100, 1000, 10_000):
            counts = zipf_counts(lines, top)
            assert counts == sorted(counts, reverse=True) and len(counts) > top and min(counts) == 1
            assert all(a - b >= 2 for a, b in pairwise(counts[: top + 1]))
            if lines >= 100 and top <= 3:
                assert abs(sum(counts) - lines) <= 4


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (VariableTracking, {"hops": 0}, "vt: hops=0: expected a whole number, 1 or more"),
        (VariableTracking, {"chains": 1}, "vt: chains=1: expected a whole number, 2 or more"),
        (VariableTracking, {"hops": 2.5}, "vt: hops=2.5"),
        (VariableTracking, {"ask": "all"}, "vt: ask='all': expected one of number, names"),
        (VariableTracking, {"hops": 999, "chains": 9}, "expected at most 8000 variables"),
        (CommonWords, {"common": 0}, "cwe: common=0"),
        (CommonWords, {"common_repeats": 2}, "common_repeats=2: expected more than uncommon_repeats=2"),
        (CommonWords, {"uncommon_repeats": True}, "cwe: uncommon_repeats=True"),
        (FrequentWords, {"top": 0}, "fwe: top=0"),
        (FrequentWords, {"top": 41}, "fwe: top=41: expected at most 40"),
    ],
)
def test_wrong_options_are_named(kind, options, message):
    with pytest.raises(RecallError, match=re.escape(message)):
        kind(**options)
