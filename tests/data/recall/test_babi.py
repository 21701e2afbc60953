"""bAbI-style stories: a reader that knows only the text finds every answer, and guessing does not."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from tests.data.recall.reading import needed, parts
from tests.tiers import in_ci
from zoo.data.recall.base import Place
from zoo.data.recall.haystack import NoiseHaystack
from zoo.data.recall.samples import RecallError, sample_rng
from zoo.data.recall.tasks.babi import Babi

KINDS = tuple(Babi.VARIANTS)
WALK = re.compile(r"(\w+) (?:went|moved) to the (\w+)\.")
TAKE = re.compile(r"(\w+) (?:took|grabbed) the (\w+)\.")
DROP = re.compile(r"(\w+) (?:dropped|put down) the (\w+)\.")
RULE = re.compile(r"([A-Z]\w+) are afraid of (\w+)\.")
MEMBER = re.compile(r"([A-Z]\w+) is a (\w+)\.")
PLURALS = {"mouse": "mice", "wolf": "wolves", "fox": "foxes"}


def read(lines):
    """Where people and objects have been, line by line, and what people hold, from sentences that match exactly."""
    been, hands = {}, {}
    for line in lines:
        if walk := WALK.fullmatch(line):
            person, place = walk.groups()
            for mover in (person, *hands.get(person, ())):
                been.setdefault(mover, []).append(place)
        elif take := TAKE.fullmatch(line):
            person, thing = take.groups()
            assert not any(thing in held for held in hands.values()), "taken from somebody's hands"
            assert thing not in been or been[thing][-1] == been[person][-1], "taken from another place"
            hands.setdefault(person, set()).add(thing)
            been.setdefault(thing, [been[person][-1]])
        elif drop := DROP.fullmatch(line):
            person, thing = drop.groups()
            hands[person].remove(thing)
    return been, hands


def solve(lines, asked):
    """The answer to a question after a story; None if the story does not tell."""
    been, hands = read(lines)
    if found := re.fullmatch(r"Where is (?:the )?(\w+)\? (?:The )?\1 is in the", asked):
        return been.get(found[1], [None])[-1]
    if found := re.fullmatch(r"Where was the (\w+) before the (\w+)\? The \1 was in the", asked):
        places = been.get(found[1], [])
        before = [a for a, b in pairwise(places) if b == found[2]]
        assert len(before) <= 1, "more than one answer"
        return before[0] if before else None
    if found := re.fullmatch(r"Is (\w+) in the (\w+), yes or no\? Answer:", asked):
        return None if found[1] not in been else "yes" if been[found[1]][-1] == found[2] else "no"
    if found := re.fullmatch(r"How many objects does (\w+) carry: none, one, two or three\? \1 carries", asked):
        return None if found[1] not in been else ("none", "one", "two", "three", "four")[len(hands.get(found[1], ()))]
    found = re.fullmatch(r"What is (\w+) afraid of\? \1 is afraid of", asked)
    rules = {match[1].lower(): match[2] for line in lines if (match := RULE.fullmatch(line))}
    members = {match[1]: match[2] for line in lines if (match := MEMBER.fullmatch(line))}
    kind = members.get(found[1], "nothing")
    return rules.get(PLURALS.get(kind, kind + "s"))


def variant(kind):
    return Babi(**Babi.VARIANTS[kind])


def drawn(kind, count):
    task = variant(kind)
    return [task.draw(sample_rng("test", kind, index), None, None) for index in range(count)]


@pytest.mark.parametrize("kind", [*KINDS[:4], *in_ci(*KINDS[4:])])
def test_a_reader_of_the_text_finds_every_answer(kind, encoder, noise):
    task = variant(kind)
    for index in range(60):
        length = (None, 256, 512, 1000)[index % 4]
        place = Place(index, length, depth=(None, 0.0, 0.5, 1.0)[index // 4 % 4])
        least = needed(task, place, encoder)
        if length is not None and least > length:
            with pytest.raises(RecallError, match=f"need {least} tokens.*length={length}.*easier variant"):
                task.sample(place, encoder, noise)
            continue
        sample = task.sample(place, encoder, noise)
        assert len(sample) == (least if length is None else length)
        ((text, answer, others),) = parts(sample, encoder)
        *lines, asked = text.split("\n")
        assert answer == " " + solve(lines, asked)
        assert answer not in others and len(others) == len(set(others)) > 0
        assert all(re.search(rf"\b{other.strip()}\b", text) for other in others)


@pytest.mark.parametrize("kind", KINDS)
def test_the_placed_fact_is_the_last_one_the_answer_rests_on(kind):
    for facts in drawn(kind, 100):
        lines = [fact.removesuffix("\n") for fact in facts.facts]
        (question,) = facts.questions
        answer = question.answer.strip()
        assert solve(lines[: facts.placed + 1], question.prompt) == answer
        if kind not in ("two_facts", "yes_no"):  # which can rest on an object put down, and be "no" all along
            assert solve(lines[: facts.placed], question.prompt) != answer


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_alone_does_not_tell(kind, encoder, noise):
    task = variant(kind)
    for index in range(20):
        place = Place(index, 1000)
        ((text, _, others),) = parts(task.without_context(place, encoder, noise), encoder)
        ((whole, _, offered),) = parts(task.sample(place, encoder, noise), encoder)
        assert text == whole.rsplit("\n", 1)[1]
        assert others == offered


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("one_fact", 0.03, 0.09),  # one of 18 places
        *in_ci(
            ("two_facts", 0.03, 0.09),
            ("three_facts", 0.03, 0.09),
            ("yes_no", 0.45, 0.55),
            ("counting", 0.21, 0.29),
            ("deduction", 0.04, 0.12),  # one of 13 animals
        ),
    ],
)
def test_no_answer_is_likelier_than_the_others(kind, least, most):
    counts = Counter(facts.questions[0].answer for facts in drawn(kind, 800))
    assert least < min(counts.values()) / 800 and max(counts.values()) / 800 < most


def test_having_been_somewhere_is_no_sign_of_being_there():
    been_and_no = 0
    for facts in drawn("yes_no", 400):
        (question,) = facts.questions
        person, place = re.match(r"Is (\w+) in the (\w+)", question.prompt).groups()
        earlier = any(line.startswith(f"{person} ") and line.endswith(f" {place}.\n") for line in facts.facts)
        been_and_no += earlier and question.answer == " no"
    assert been_and_no > 150  # of about 200 that are "no"


@pytest.mark.parametrize("kind", ["one_fact", "two_facts", "three_facts"])
def test_where_a_place_stands_does_not_tell(kind):
    last = first = most = 0
    for facts in drawn(kind, 400):
        answer = facts.questions[0].answer.strip()
        places = [match[2] for line in facts.facts if (match := WALK.fullmatch(line.strip()))]
        last += places[-1] == answer
        first += places[0] == answer
        most += Counter(places).most_common(1)[0][0] == answer
    assert max(last, first, most) / 400 < 0.45


def test_counting_needs_what_was_put_down():
    wrong = 0
    for facts in drawn("counting", 400):
        person = facts.questions[0].prompt.split()[4]
        taken = sum(bool(TAKE.fullmatch(line.strip())) and line.startswith(person) for line in facts.facts)
        wrong += ("none", "one", "two", "three").index(facts.questions[0].answer.strip()) != min(taken, 3)
    assert wrong / 400 > 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_stories_do_not_repeat(kind):
    contents = {(facts.facts, facts.questions) for facts in drawn(kind, 300)}
    assert len(contents) == 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "four_facts"}, "kind='four_facts': expected one of one_fact, "),
        ({"events": 0}, "events=0: expected a whole number, 1 or more"),
        ({"people": 1}, "people=1: expected a whole number, 2 or more"),
        ({"people": "two"}, "people='two'"),
        ({"people": 99}, "people=99: expected at most 24"),
        ({"kind": "deduction", "people": 14}, "people=14: expected at most 13"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(RecallError, match=re.escape(message)):
        Babi(**options)


@pytest.mark.parametrize("kind", ["one_fact", "two_facts", "three_facts", "yes_no", "counting"])
def test_a_story_too_short_for_its_question_ends_in_an_error(kind, encoders):
    with pytest.raises(RecallError, match=f"no story for kind='{kind}' with events=1.*more events"):
        Babi(kind=kind, events=1).sample(Place(0, 512), encoders["bytes"], NoiseHaystack(encoders["bytes"]))
