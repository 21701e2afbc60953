from itertools import product

import numpy as np
import pytest

from tests.tiers import in_ci
from zoo.data.recall.base import Place
from zoo.data.recall.samples import RecallError
from zoo.data.recall.tasks.mqar import MQAR


def solve(tokens, pairs, answer):
    """The value of the key in front of an answer, read off the pairs at the begin; None without such a pair."""
    found = dict(zip(tokens[1 : 1 + 2 * pairs : 2], tokens[2 : 2 + 2 * pairs : 2]))
    return found.get(tokens[answer.start - 1])


def read(sample):
    return sample.tokens.tolist(), sample.answers


@pytest.mark.parametrize("variant", MQAR.VARIANTS)
@pytest.mark.parametrize("filler", [True, False])
def test_every_question_is_answered_by_the_pairs(encoder, variant, filler):
    task = MQAR(**MQAR.VARIANTS[variant], filler=filler)
    n = task.pairs
    assert variant == f"pairs{n}"
    half = (len(encoder.ids) - 1) // 2
    keys, values = set(encoder.ids[1 : 1 + half].tolist()), set(encoder.ids[1 + half : 1 + 2 * half].tolist())
    for index, length in product(range(5), (None, 4 * n + 1, 4 * n + 2, 4 * n + 9, 1000)):
        sample = task.sample(Place(index, length), encoder)
        tokens, answers = read(sample)
        assert len(tokens) == (length or 4 * n + 1)
        assert sample.tokens.dtype == np.int64
        assert [token for token in tokens if token == encoder.document_token] == tokens[:1]
        assert len(set(tokens[1 : 1 + 2 * n : 2]) & keys) == len(set(tokens[2 : 2 + 2 * n : 2]) & values) == n
        assert len(answers) == n
        assert sorted(tokens[answer.start - 1] for answer in answers) == sorted(tokens[1 : 1 + 2 * n : 2])
        for answer in answers:
            assert answer.stop == answer.start + 1 > 1 + 2 * n
            assert tokens[answer.start] == solve(tokens, n, answer)
            others = {token for (token,) in answer.others}
            assert len(answer.others) == len(others) == n - 1
            assert others | {tokens[answer.start]} == set(tokens[2 : 2 + 2 * n : 2])
        assert [a.start for a in answers] == sorted(a.start for a in answers)


def test_filler_is_never_a_key_of_the_sample(encoder):
    seen, alike = set(), set()
    for index in range(100):
        tokens, answers = read(MQAR(pairs=4).sample(Place(index, 100), encoder))
        asked = {at for answer in answers for at in (answer.start - 1, answer.start)}
        blanks = [token for at, token in enumerate(tokens) if at > 8 and at not in asked]
        assert not set(blanks) & set(tokens[1:9:2])
        seen |= set(blanks)
        tokens, answers = read(MQAR(pairs=4, filler=False).sample(Place(index, 100), encoder))
        asked = {at for answer in answers for at in (answer.start - 1, answer.start)}
        alike |= {token for at, token in enumerate(tokens) if at > 8 and at not in asked}
    assert seen == set(encoder.ids.tolist())  # all others do appear
    assert alike == {int(encoder.ids[0])}


@pytest.mark.parametrize("power", [*in_ci(0.01, 1.0), 0.5])
def test_queries_follow_the_power_law(encoders, power):
    slots, count = 12, 3000
    first = np.zeros(slots)
    for index in range(count):
        (answer,) = MQAR(pairs=1, power=power).sample(Place(index, 3 + 2 * slots), encoders["bytes"]).answers
        first[(answer.start - 1 - 3) // 2] += 1
    law = power * np.arange(1, slots + 1) ** (power - 1)
    expected = count * law / law.sum()
    chi2 = ((first - expected) ** 2 / expected).sum()
    assert chi2 < 31.3  # 11 degrees of freedom: exceeded once in 1000 times


def test_two_queries_are_drawn_without_replacement(encoders):
    law = np.arange(1.0, 5) ** -0.99
    law /= law.sum()
    exact = {
        frozenset((a, b)): law[a] * law[b] * (1 / (1 - law[a]) + 1 / (1 - law[b])) for a in range(4) for b in range(a)
    }
    count, found = 3000, dict.fromkeys(exact, 0)
    for index in range(count):
        answers = MQAR(pairs=2).sample(Place(index, 5 + 8), encoders["bytes"]).answers
        found[frozenset((answer.start - 6) // 2 for answer in answers)] += 1
    assert sum(exact.values()) == pytest.approx(1)
    chi2 = sum((found[pair] - count * p) ** 2 / (count * p) for pair, p in exact.items())
    assert chi2 < 20.5  # 5 degrees of freedom: exceeded once in 1000 times


def test_the_order_of_queries_does_not_follow_the_pairs(encoder):
    orders = set()
    for index in range(100):
        tokens, answers = read(MQAR(pairs=3).sample(Place(index, None), encoder))
        keys = tokens[1:7:2]
        orders.add(tuple(keys.index(tokens[answer.start - 1]) for answer in answers))
    assert len(orders) == 6


def test_keys_and_values_are_spread_evenly(encoder):
    half, count = (len(encoder.ids) - 1) // 2, 800
    found = np.zeros((2, half))
    for index in range(count):
        pairs = MQAR(pairs=8).sample(Place(index, None), encoder).tokens[1:17].reshape(8, 2)
        np.add.at(found, ([0, 1], np.searchsorted(encoder.ids, pairs) - [1, 1 + half]), 1)
    expected = 8 * count / half
    chi2 = ((found - expected) ** 2 / expected).sum(axis=1)
    assert (chi2 < half + 4 * np.sqrt(2 * half)).all()


def test_all_ids_of_a_half_can_be_used(encoder):
    half = (len(encoder.ids) - 1) // 2
    tokens, _ = read(MQAR(pairs=half).sample(Place(0, None), encoder))
    assert sorted(tokens[1 : 1 + 2 * half : 2]) == encoder.ids[1 : 1 + half].tolist()
    with pytest.raises(RecallError, match=rf"pairs={half + 1} .* are {half}\. Choose at most pairs={half}"):
        MQAR(pairs=half + 1).sample(Place(0, None), encoder)


def test_without_context_has_the_queries_alone(encoder):
    task, place = MQAR(pairs=8), Place(3, 200)
    whole, bare = task.sample(place, encoder), task.without_context(place, encoder)
    tokens, answers = read(bare)
    assert len(tokens) == 17
    asked = [(whole.tokens[a.start - 1], whole.tokens[a.start]) for a in whole.answers]
    assert [(tokens[a.start - 1], tokens[a.start]) for a in answers] == asked
    assert tokens == [encoder.document_token, *(int(token) for pair in asked for token in pair)]
    assert bare.id == whole.id
    assert [a.others for a in answers] == [a.others for a in whole.answers]


def test_samples_are_a_function_of_their_place(encoder):
    task, place = MQAR(), Place(3, 200)
    first, again = task.sample(place, encoder), task.sample(place, encoder)
    assert (first.id, *read(first)) == (again.id, *read(again))
    others = [Place(4, 200), Place(3, 201), Place(3, 200, seed=1), Place(3, 200, split="train")]
    samples = [first, *(task.sample(other, encoder) for other in others), MQAR(power=0.5).sample(place, encoder)]
    assert len({sample.id for sample in samples}) == len({tuple(s.tokens[1:17]) for s in samples}) == len(samples)


def test_train_and_eval_share_no_content(encoder):
    # One pair of half x half: so few that the same are drawn again and again.
    task = MQAR(pairs=1)
    drawn = {
        split: {tuple(task.sample(Place(n, 5, split=split), encoder).tokens[1:3].tolist()) for n in range(800)}
        for split in ("train", "eval")
    }
    assert min(map(len, drawn.values())) < 800  # some did come twice
    assert not drawn["train"] & drawn["eval"]
    with pytest.raises(ValueError, match="expected one of train, eval"):
        task.sample(Place(0, 5, split="test"), encoder)


@pytest.mark.parametrize(
    ("pairs", "length", "message"),
    [
        (8, 32, r"pairs=8 need 33 tokens, more than length=32: pairs=7 would fit this length"),
        (2, 4, r"pairs=2 need 9 tokens, more than length=4: one pair needs 5"),
    ],
)
def test_too_short_a_length_names_what_fits(encoder, pairs, length, message):
    with pytest.raises(RecallError, match=message):
        MQAR(pairs=pairs).sample(Place(0, length), encoder)


def test_queries_ask_any_key_as_often_as_it_is_drawn(encoder):
    task, counts = MQAR(pairs=4, queries=12), []
    for index in range(40):
        tokens, answers = read(task.sample(Place(index, 60), encoder))
        assert len(answers) == 12 and len(tokens) == 60
        assert all(solve(tokens, 4, answer) == tokens[answer.start] for answer in answers)
        asked = [tokens[answer.start - 1] for answer in answers]
        counts += [asked.count(key) for key in tokens[1:9:2]]
        wrong = [{value for (value,) in answer.others} for answer in answers]
        assert all(len(one) == 3 and one < set(tokens[2:9:2]) for one in wrong)
    assert min(counts) == 0 and max(counts) > 5 and sum(counts) == 40 * 12
    assert len(task.sample(Place(0, None), encoder)) == 1 + 8 + 24
    with pytest.raises(RecallError, match=r"need 33 tokens, more than length=32: pairs=3 would fit"):
        task.sample(Place(0, 32), encoder)


@pytest.mark.parametrize(
    "options", [{"pairs": 0}, {"queries": 0}, {"pairs": 2.5}, {"power": 0}, {"power": float("nan")}]
)
def test_options_out_of_range_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(RecallError, match=f"mqar: {name}={value}: expected"):
        MQAR(**options)


def test_it_asks_no_fact_of_a_depth(encoder):
    assert not MQAR().has_depth
    assert MQAR().sample(Place(0, 100), encoder).depth is None
