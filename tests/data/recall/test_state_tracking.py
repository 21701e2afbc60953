"""State tracking: groups are groups, labels are what an oracle tracks, and nothing is both trained and tested."""

from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest

from tests.data.recall.state_oracle import FIRST, SIZES, THINGS, track
from zoo.data.recall.base import Place
from zoo.data.recall.build import build_task
from zoo.data.recall.cache import sample_cache, samples_digest
from zoo.data.recall.groups import GROUPS
from zoo.data.recall.samples import RecallError
from zoo.data.recall.tasks import state_tracking
from zoo.data.recall.tasks.state_tracking import StateTracking

VARIANTS = list(StateTracking.VARIANTS)


def read(task, sample, encoder):
    """Symbols and labels as numbers of elements of the group; the label at i is behind symbol i."""
    number = {int(token): index - FIRST[task.group] for index, token in enumerate(encoder.ids)}
    return [[number[token] for token in part.tolist()] for part in (sample.tokens[1:-1], sample.labels[2:])]


@pytest.mark.parametrize("name", GROUPS)
def test_tables_are_groups(name):
    table, n = np.array(GROUPS[name].table), len(GROUPS[name])
    assert table.shape == (n, n) == (SIZES[name],) * 2
    for rows in (table, table.T):  # closed, and every element has an inverse
        assert (np.sort(rows) == np.arange(n)).all()
    assert (table[0] == np.arange(n)).all() and (table[:, 0] == np.arange(n)).all()
    a, b, c = np.ix_(range(n), range(n), range(n))
    assert (table[table[a, b], c] == table[a, table[b, c]]).all()
    assert (table == table.T).all() == (name not in THINGS)


@pytest.mark.parametrize("name", THINGS)
def test_tables_of_permutations_are_theirs_and_swaps_exchange_two_things(name):
    elements, group = list(permutations(range(THINGS[name]))), GROUPS[name]
    for a, b in product(range(len(elements)), repeat=2):
        moved = [elements[b][thing] for thing in elements[a]]
        assert elements[group.table[a][b]] == tuple(moved)
    moves = {swap: sum(i != x for i, x in enumerate(elements[swap])) for swap in group.swaps}
    assert sorted(moves.values()) == [0, *[2] * (THINGS[name] * (THINGS[name] - 1) // 2)]
    reached = {0}
    while len(more := reached | {group.table[a][b] for a in reached for b in group.swaps}) > len(reached):
        reached = more
    assert len(reached) == len(group)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [8, 9, 64, 65, 500])
def test_a_label_is_the_state_behind_the_symbols_before_it_and_of_no_other(encoder, variant, length):
    task = build_task("state_tracking", variant)
    for index in range(4):
        sample = task.sample(Place(index, length), encoder)
        assert sample.tokens.shape == sample.labels.shape == (length,)
        assert sample.tokens.dtype == sample.labels.dtype == np.int64
        assert sample.tokens[0] == sample.tokens[-1] == encoder.document_token
        symbols, labels = read(task, sample, encoder)
        assert {*symbols, *labels} <= set(range(SIZES[task.group]))
        if task.swaps:
            assert set(symbols) <= set(GROUPS[task.group].swaps)
        assert labels == track(task.group, symbols)
        assert np.array_equal(sample.targets, sample.labels) and sample.chance == 1 / SIZES[task.group]


@pytest.mark.parametrize(("asked", "count"), [(0.5, 31), (1.0, 62), (0.001, 1), (0.51, 32)])
def test_the_last_states_are_asked_for(encoder, asked, count):
    answers = StateTracking(asked=asked).sample(Place(0, 64), encoder).answers
    assert [(answer.start, answer.stop) for answer in answers] == [(at, at + 1) for at in range(64 - count, 64)]
    assert not any(answer.others or answer.references for answer in answers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_stands_in_the_sample_does_not_tell_the_label(encoder, variant):
    """Symbols are drawn evenly, states are as likely as each other, and neither symbol beside a label is it."""
    task, count, length = build_task("state_tracking", variant), 60, 130
    pairs = [read(task, task.sample(Place(i, length), encoder), encoder) for i in range(count)]
    symbols = np.array([symbol for symbols, _ in pairs for symbol in symbols])
    labels = np.array([label for _, labels in pairs for label in labels[32:]])
    kinds = GROUPS[task.group].swaps if task.swaps else range(SIZES[task.group])
    for found, allowed in ((symbols, kinds), (labels, range(SIZES[task.group]))):
        expected = len(found) / len(allowed)
        tallies = np.bincount(found, minlength=SIZES[task.group])[list(allowed)]
        freedom = len(allowed) - 1  # states that follow each other are not independent draws: a wide limit
        assert ((tallies - expected) ** 2 / expected).sum() < freedom + 8 * (2 * freedom) ** 0.5
    shifts = [np.array([x[32 + shift : length - 3 + shift] for x, _ in pairs]) for shift in (0, 1)]
    beside = np.array([y[32 : length - 3] for _, y in pairs])
    for shifted in shifts:
        share, even = (shifted == beside).mean(), 1 / SIZES[task.group]
        assert share == pytest.approx(even, abs=5 * (even / beside.size) ** 0.5)


@pytest.mark.parametrize("variant", ["parity", "s3", "s3_swap"])
def test_no_content_is_trained_on_and_tested(encoder, variant):
    """All contents of a short length, whose splits would soon meet if they could; variants of a group share them."""
    task = build_task("state_tracking", variant)
    others = [one for one in map(build_task, ["state_tracking"] * 6, VARIANTS) if one.group == task.group]
    length = {"parity": 7, "s3": 4}[task.group]

    def contents(split):
        places = [Place(index, length, None, split) for index in range(300)]
        return {tuple(read(one, one.sample(place, encoder), encoder)[0]) for one in others for place in places}

    trained, tested = contents("train"), contents("eval")
    assert trained and tested and not trained & tested
    assert trained | tested == set(product(range(SIZES[task.group]), repeat=length - 2))


def test_samples_are_a_function_of_their_place_and_options(encoder):
    task, place = build_task("state_tracking", "s5"), Place(3, 64)
    first, again = (build_task("state_tracking", "s5").sample(place, encoder) for _ in range(2))
    assert np.array_equal(first.tokens, again.tokens) and first.id == again.id
    places = [place, *(replace(place, **{name: 9}) for name in ("index", "seed", "length"))]
    places.append(replace(place, split="train"))
    assert len({task.sample(one, encoder).tokens.tobytes() for one in places}) == len(places)
    assert len({task.sample(one, encoder).id for one in places}) == len(places)
    assert len({repr(build_task("state_tracking", name).recipe) for name in VARIANTS}) == len(VARIANTS)


def test_each_group_has_ids_of_its_own(encoder):
    seen = {}
    for variant in VARIANTS:
        task = build_task("state_tracking", variant)
        samples = [task.sample(Place(i, 400), encoder) for i in range(8)]
        ids = set().union(*(set(sample.tokens[1:-1].tolist()) | set(sample.labels[2:].tolist()) for sample in samples))
        seen.setdefault(task.group, set()).update(ids)
    ids = encoder.ids.tolist()
    assert {name: sorted(found) for name, found in seen.items()} == {
        name: ids[FIRST[name] : FIRST[name] + SIZES[name]] for name in SIZES
    }


def test_labels_and_chance_come_back_from_the_cache(encoder, tmp_path):
    made = [build_task("state_tracking", "s3").sample(Place(i, 20 + i), encoder) for i in range(3)]
    mixed = [made[0], build_task("mqar").sample(Place(0, 60), encoder), *made[1:]]
    with sample_cache(tmp_path) as cached:
        cached("recipe", lambda: mixed)
    with sample_cache(tmp_path) as cached:
        found = cached("recipe", lambda: pytest.fail("they are in the cache"))
    assert samples_digest(found) == samples_digest(mixed)
    assert [sample.chance for sample in found] == [1 / 6, None, 1 / 6, 1 / 6]
    assert found[1].labels is None and np.array_equal(found[3].labels, made[2].labels)
    other = replace(mixed[0], labels=mixed[0].labels[::-1].copy())
    assert samples_digest([other, *mixed[1:]]) != samples_digest(mixed)


@pytest.mark.parametrize(
    ("options", "length", "message"),
    [
        ({}, 2, r"need 3 tokens, more than length=2\. Choose a longer task\.lengths"),
        ({"group": "s4"}, 64, r"group='s4': expected one of parity, mod5, s3, s5"),
        ({"swaps": True}, 64, r"swaps=true with group=parity: expected group=s3 or s5"),
        ({"asked": 0.0}, 64, r"asked=0\.0: expected a share above 0, at most 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(encoder, options, length, message):
    with pytest.raises(RecallError, match=f"^state_tracking: .*{message}"):
        StateTracking(**options).sample(Place(0, length), encoder)


def test_a_length_with_too_few_contents_for_both_splits_is_refused(encoder, monkeypatch):
    monkeypatch.setattr(state_tracking, "belongs", lambda content, split: False)
    with pytest.raises(RecallError, match=r"in 256 draws: 1 symbols of parity are too few\. Choose a longer"):
        StateTracking().sample(Place(0, 3), encoder)


def test_a_tokenizer_of_few_ids_is_refused(encoders):
    few = encoders["bytes"]
    few = type("Few", (), {"ids": few.ids[:132], "document_token": few.document_token})()
    with pytest.raises(RecallError, match=r"need 133 ids, and this tokenizer has 132\. Choose tokenizer=bytes"):
        StateTracking().sample(Place(0, 64), few)
