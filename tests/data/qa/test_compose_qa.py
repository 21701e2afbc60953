import random
import re
from dataclasses import replace

import numpy as np
import pytest

from zoo.data.qa.compose_qa import compose_question, compose_record, needed_tokens
from zoo.data.qa.distractors import DistractorPool
from zoo.data.recall.samples import RecallError, Sample

DEPTHS = (0.0, 0.25, 0.5, 0.8, 1.0, None)


def make(record, records, encoder, length, depth, seed=0, **options):
    return compose_record(record, DistractorPool(records), encoder, random.Random(seed), length, depth, **options)


def find(tokens, wanted):
    """Every place where ``wanted`` stands in ``tokens``."""
    tokens, wanted = list(tokens), list(wanted)
    return [at for at in range(len(tokens) - len(wanted) + 1) if tokens[at : at + len(wanted)] == wanted]


def parts(sample, record, encoder):
    """Text before the needed paragraph, and between it and the question."""
    text = encoder.decode(sample.tokens)
    context, prompt, _ = text.rpartition(f"Question: {record.question}\nAnswer:")
    assert prompt
    before, gold, behind = context.partition(record.paragraphs[0] + "\n")
    assert gold
    return before, behind


def longest(records, record, encoder):
    """Tokens with every other paragraph as context, counted one by one."""
    lines = [f"{r.paragraphs[0]}\n" for r in records]
    return needed_tokens(record, encoder) + sum(len(encoder(line)) for line in lines if record.answers[0] not in line)


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_length_that_fits_is_met_exactly(records, encoder, depth):
    record = records[2]
    gold, answer = encoder(record.paragraphs[0] + "\n"), encoder(" cream")
    prompt = encoder(f"Question: {record.question}\nAnswer:")
    least, most = needed_tokens(record, encoder), longest(records, record, encoder)
    assert least == 1 + len(gold) + len(prompt) + len(answer)
    for length in [*range(least, least + 70), *range(least + 70, most - 60, 37)]:
        sample = make(record, records, encoder, length, depth)
        assert isinstance(sample, Sample) and sample.tokens.shape == (length,) and sample.tokens.dtype == np.int64
        assert find(sample.tokens, [encoder.document_token]) == [0]
        assert tuple(sample.tokens[-len(prompt) - len(answer) :]) == prompt + answer
        (place,) = find(sample.tokens, gold)
        assert sample.depth == pytest.approx((place - 1) / (length - 1 - len(prompt) - len(answer)), abs=1e-12)
        (asked,) = sample.answers
        assert (asked.start, asked.stop) == (length - len(answer), length) and asked.references == ("cream",)
        assert sample.id == "r2" and sample.truncated == 0


def test_the_context_is_other_paragraphs_each_once_and_whole_but_at_its_ends(records, encoder):
    record = records[5]
    texts = {r.paragraphs[0] for r in records} - set(record.paragraphs)
    for seed in range(30):
        length = needed_tokens(record, encoder) + 20 + 7 * seed
        before, behind = parts(make(record, records, encoder, length, seed / 29, seed), record, encoder)
        rest, *lines = before.splitlines() or [""]
        after = behind.splitlines()
        assert rest == "" or any(text.endswith(rest) or rest.endswith(text) for text in texts)
        whole = [line for line in [*lines, *after[:-1]] if line in texts]
        assert len(whole) == len(set(whole)) and set(lines) <= texts and set(after[:-1]) <= texts
        if after and after[-1] not in texts:  # the head of one more, up to the end of a sentence
            (origin,) = [text for text in texts if text.startswith(after[-1] + " ")]
            assert after[-1].endswith(".") and origin not in lines


def test_depth_is_met_to_a_sentence(records, encoder):
    record = records[0]
    texts = [r.paragraphs[0] for r in records]
    sentences = [piece for text in texts for piece in re.split(r"(?<=\.) ", text)]
    slack = 2 + max(len(encoder(f" {sentence}\n")) for sentence in sentences)
    least = needed_tokens(record, encoder)
    for length in range(least + 30, longest(records, record, encoder) - 60, 41):
        reached = []
        for depth in (0.0, 0.3, 0.5, 0.9, 1.0):
            sample = make(record, records, encoder, length, depth)
            (place,) = find(sample.tokens, encoder(texts[0] + "\n"))
            assert -1 <= (place - 1) - depth * (length - least) <= slack
            reached.append(sample.depth)
        assert reached == sorted(reached)
        assert place - 1 == length - least  # at depth 1 nothing stands behind


def test_without_a_depth_the_paragraph_is_anywhere(records, encoder):
    depths = [make(records[0], records, encoder, 300, None, seed).depth for seed in range(24)]
    spread = [make(records[0], records, encoder, 300, depth).depth for depth in (0.0, 1.0)]
    assert min(depths) < spread[0] + 0.2 * (spread[1] - spread[0])
    assert max(depths) > spread[0] + 0.8 * (spread[1] - spread[0])


def test_no_distractor_holds_an_answer(make_record, records, encoder):
    asked = make_record(9, answers=("Amber", "the 21"), paragraphs=("Amber it was, by the 21 of them.",))
    leaking = [make_record(20 + n, paragraphs=(text,)) for n, text in enumerate(("An AMBER\nroom.", "On the  21."))]
    harmless = make_record(30, paragraphs=("Nothing of the 210 here.",))
    everything = [asked, *leaking, harmless, *records]
    seen = set()
    for seed in range(20):
        sample = make(asked, everything, encoder, needed_tokens(asked, encoder) + 150, seed / 19, seed)
        before, behind = parts(sample, asked, encoder)
        seen |= set((before + behind).splitlines())
        assert "amber" not in (before + behind).lower() and "the 21." not in " ".join((before + behind).split())
    assert paragraph_of(records[3]) in seen and paragraph_of(records[0]) not in seen
    allowed = set(DistractorPool(everything).texts(asked, random.Random(0)))
    # "the 21" is long enough to be looked for inside of words, so that 210 goes too
    assert allowed == {paragraph_of(r) for r in records[1:]}


def paragraph_of(record):
    return record.paragraphs[0]


def test_own_distractors_come_first(make_record, records, encoder):
    own = ("A first text beside the point.", "A second text beside it.", "A third one is amber.")
    record = make_record(0, distractors=own)
    pool = DistractorPool([record, *records[1:]])
    for seed in range(5):
        texts = list(pool.texts(record, random.Random(seed)))
        assert set(texts[:2]) == set(own[:2]) and own[2] not in texts
        assert sorted(texts[2:]) == sorted(paragraph_of(r) for r in records[1:])
    others = list(pool.texts(records[4], random.Random(0)))
    assert set(own) <= set(others)  # and serve for other records too


def test_distractors_are_in_another_order_for_every_sample(records, encoder):
    pool = DistractorPool(records)
    orders = [tuple(pool.texts(records[0], random.Random(seed))) for seed in range(400)]
    assert len(set(orders)) > 350 and all(len(set(order)) == 7 for order in orders)
    first = [sum(order[0] == paragraph_of(r) for order in orders) for r in records[1:]]
    assert sum((n - 400 / 7) ** 2 / (400 / 7) for n in first) < 22.5  # chi squared, 6 degrees of freedom, p = 0.001


def test_the_same_random_numbers_give_the_same_sample(records, encoder):
    for depth in (None, 0.5):
        first, again, other = (make(records[1], records, encoder, 300, depth, seed) for seed in (3, 3, 4))
        assert np.array_equal(first.tokens, again.tokens) and first.answers == again.answers
        assert not np.array_equal(first.tokens, other.tokens)


def test_alone_and_without_context(records, encoder):
    record = records[6]
    alone = make(record, records, encoder, None, 0.5)
    text = f"{paragraph_of(record)}\nQuestion: What colour is the vase?\nAnswer: green"
    pieces = [f"{paragraph_of(record)}\n", "Question: What colour is the vase?\nAnswer:", " green"]
    assert encoder.decode(alone.tokens) == text
    assert tuple(alone.tokens) == (encoder.document_token, *(t for piece in pieces for t in encoder(piece)))
    assert alone.depth is None
    bare = compose_question(record, DistractorPool(records), encoder)
    assert encoder.decode(bare.tokens) == "Question: What colour is the vase?\nAnswer: green"
    (answer,) = bare.answers
    assert encoder.decode(bare.tokens[answer.start : answer.stop]) == " green"


def test_a_record_that_does_not_fit_says_what_it_needs(records, encoder):
    least = needed_tokens(records[3], encoder)
    assert len(make(records[3], records, encoder, least, 0.5)) == least
    for fill in (True, False):
        with pytest.raises(
            RecallError, match=rf"file line 4: .* need {least} tokens .* length={least - 1}\. Choose longer"
        ):
            make(records[3], records, encoder, least - 1, 0.5, fill=fill)


@pytest.mark.parametrize("depth", [0.0, 1.0])
def test_too_few_distractors_say_how_long_it_can_get(records, encoder, depth):
    most = longest(records, records[3], encoder)
    assert len(make(records[3], records, encoder, most, depth)) == most
    message = rf"file line 4: .* has {most} tokens .* fewer than length={most + 1}\. Choose shorter"
    with pytest.raises(RecallError, match=message):
        make(records[3], records, encoder, most + 1, depth)


def test_the_middle_of_a_long_text_is_left_out(records, encoder):
    record = records[2]
    gold = encoder(paragraph_of(record) + "\n")
    prompt = encoder(f"Question: {record.question}\nAnswer:") + encoder(" cream")
    for length in range(1 + len(prompt), 1 + len(prompt) + len(gold)):
        sample = make(record, records, encoder, length, 0.5, truncate="middle")
        room = length - 1 - len(prompt)
        head, tail = (room + 1) // 2, room // 2
        expected = (encoder.document_token, *gold[:head], *gold[len(gold) - tail :], *prompt)
        assert tuple(sample.tokens) == expected
        assert sample.truncated == len(gold) - room and sample.depth is None
    with pytest.raises(RecallError, match=rf"its question and answer alone need {1 + len(prompt)} tokens"):
        make(record, records, encoder, len(prompt), None, truncate="middle")
    fits = make(record, records, encoder, 1 + len(prompt) + len(gold), None, truncate="middle", fill=False)
    assert fits.truncated == 0


def test_without_fill_the_length_is_a_limit(records, encoder):
    alone = make(records[1], records, encoder, None, None)
    limited = make(records[1], records, encoder, 10_000, 0.5, fill=False)
    assert np.array_equal(alone.tokens, limited.tokens) and limited.depth is None


def test_several_needed_texts_stand_anywhere(make_record, records, encoder):
    record = make_record(0, paragraphs=("The lamp belongs to Ann.", "Ann likes amber."))
    everything = [record, *records[1:]]
    orders, places = set(), []
    for seed in range(20):
        sample = make(record, everything, encoder, 300, 0.5, seed)
        assert len(sample) == 300 and sample.depth is None
        found = [find(sample.tokens, encoder(text + "\n")) for text in record.paragraphs]
        assert [len(places) for places in found] == [1, 1]
        orders.add(found[0] < found[1])
        places.append(found[0][0])
    assert orders == {True, False} and max(places) - min(places) > 100
    text = encoder.decode(make(record, everything, encoder, None, None).tokens)
    assert text.startswith("The lamp belongs to Ann.\nAnn likes amber.\nQuestion:")


def test_a_completion_goes_on_where_its_document_stops(make_record, records, encoder):
    record = make_record(
        0,
        kind="completion",
        paragraphs=("Device: lamp.\nColour: amber.\n",),
        question="The colour is",
        answers=("amber",),
    )
    everything = [record, *records[1:]]
    assert encoder.decode(make(record, everything, encoder, None, None).tokens) == (
        "Device: lamp.\nColour: amber.\nThe colour is amber"
    )
    bare = compose_question(record, DistractorPool(everything), encoder)
    assert encoder.decode(bare.tokens) == "The colour is amber"
    for depth in (0.0, 0.5, None):
        sample = make(record, everything, encoder, 300, depth)
        assert len(sample) == 300
        assert encoder.decode(sample.tokens).endswith(".\nDevice: lamp.\nColour: amber.\nThe colour is amber")


def test_a_choice_compares_its_options(make_record, records, encoder):
    record = make_record(0, kind="choice", options=("black", "amber", "dark green"))
    sample = make(record, [record], encoder, None, None)
    assert sample.answers[0].others == (encoder(" black"), encoder(" dark green"))


def test_wrong_values_are_the_answers_to_other_questions_about_the_text(make_record, records, encoder):
    text = ("The lamp is amber, the desk jet black, the coat cream and black.",)
    asked = make_record(0, paragraphs=text, answers=("jet black", "amber"))
    others = [
        make_record(n, paragraphs=text, answers=(answer,))
        for n, answer in enumerate(("Amber", "black", "cream", "CREAM", "the coat"), start=10)
    ]
    elsewhere = make_record(30, answers=("green",))
    pool = DistractorPool([asked, *others, elsewhere])
    assert pool.others(asked) == ("cream", "the coat")
    assert pool.others(elsewhere) == ()
    assert pool.others(others[2]) == ("jet black", "Amber", "black", "the coat")
    for made in (
        compose_record(asked, pool, encoder, random.Random(0), None, None),
        compose_question(asked, pool, encoder),
    ):
        assert made.answers[0].others == (encoder(" cream"), encoder(" the coat"))
        assert made.answers[0].references == ("jet black", "amber")


def test_the_pool_says_what_it_holds(records):
    again = DistractorPool([replace(r, where="elsewhere") for r in records])
    assert DistractorPool(records).fingerprint == again.fingerprint
    changed = [*records[:-1], replace(records[-1], paragraphs=("Another text.",))]
    assert DistractorPool(changed).fingerprint != again.fingerprint
