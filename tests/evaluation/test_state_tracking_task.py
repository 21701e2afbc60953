"""The task state_tracking: a tracker scores 1, who always says the same scores chance, and no answer is ever read."""

import types

import numpy as np
import pytest
import torch
from torch import nn

from tests.data.recall.state_oracle import FIRST, SIZES, track
from zoo.data import build_tokenizer
from zoo.data.recall.tasks.state_tracking import StateTracking
from zoo.evaluation.tasks.base import build_task
from zoo.runs.subject import OwnText, Subject

VARIANTS = list(StateTracking.VARIANTS)
VOCABULARY, DOCUMENT = 257, 256


class Told(nn.Module):
    """Stands for a decoder: its hidden state is one-hot for the token that ``say`` wants behind some tokens."""

    def __init__(self, say):
        super().__init__()
        self.say, self.config = say, types.SimpleNamespace(vocab_size=VOCABULARY)
        self.head = nn.Linear(VOCABULARY, VOCABULARY, bias=False)
        self.embedding = nn.Embedding(VOCABULARY, 1)
        nn.init.eye_(self.head.weight)

    def hidden(self, tokens, documents=None):
        said = torch.tensor([self.say(row) for row in tokens.tolist()])
        return 50.0 * nn.functional.one_hot(said, VOCABULARY).float()


def tracker(row):
    """The right token behind each of a row that may be padded on the right, whatever its group."""
    symbols = [token for token in row[1:] if token != DOCUMENT]
    group = max((name for name in FIRST if FIRST[name] <= symbols[0]), key=FIRST.get)
    states = track(group, [token - FIRST[group] if token >= FIRST[group] else 0 for token in symbols])
    return [0, *(FIRST[group] + state for state in states)]


def subject(tmp_path, say):
    tokenizer = build_tokenizer({"kind": "bytes"}, None, tmp_path)
    return Subject(Told(say), tokenizer, 64, OwnText("none", {}, str(tmp_path), {}), recall=True)


def records(outcome, metric):
    return {(r.variant, r.length): r for r in outcome.records if r.metric == metric}


def ask(tmp_path, say, **options):
    task = build_task({"name": "state_tracking", "batch_tokens": 512, **options})
    return task.evaluate(subject(tmp_path, say), 0)


def test_a_tracker_is_right_everywhere(tmp_path):
    outcome = ask(tmp_path, tracker, samples=3)
    lengths = (64, 128, 256)  # once, twice and four times the trained length
    for metric in ("accuracy", "exact_match"):
        found = records(outcome, metric)
        assert set(found) == {(variant, length) for variant in VARIANTS for length in lengths}, "and no baselines"
        assert all(record.value == 1.0 and record.n == 3 for record in found.values())
    for record in outcome.records:
        group = StateTracking.VARIANTS[record.variant]["group"]
        assert record.chance == (pytest.approx(1 / SIZES[group]) if record.metric == "accuracy" else None)
    counts = {(line["variant"], line["length"]): len(line["correct"]) for line in outcome.samples}
    assert set(counts.items()) == {((v, length), (length - 2) // 2) for v in VARIANTS for length in lengths}


def test_a_tracker_that_errs_in_one_place_loses_that_answer_alone(tmp_path):
    def once(row):
        said = tracker(row)
        if len(said) > 40:
            said[40] = 0 if said[40] != 0 else 1  # behind 40 symbols: answer 41 - 33 of 31
        return said

    outcome = ask(tmp_path, once, lengths=[64], samples=4, variants=["parity", "s5"])
    for line in outcome.samples:
        assert [at for at, right in enumerate(line["correct"]) if not right] == [41 - 33]
    for variant in ("parity", "s5"):
        assert records(outcome, "accuracy")[variant, 64].value == pytest.approx(30 / 31)
        assert records(outcome, "exact_match")[variant, 64].value == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_who_always_says_the_same_is_right_by_chance(tmp_path, variant):
    group = StateTracking.VARIANTS[variant]["group"]
    samples = {"s5": 64}.get(group, 32)
    values = []
    for state in (0, SIZES[group] - 1):
        outcome = ask(
            tmp_path,
            lambda row, s=state: [FIRST[group] + s] * len(row),
            lengths=[256],
            samples=samples,
            variants=[variant],
        )
        record = records(outcome, "accuracy")[variant, 256]
        values.append(record.value)
        assert record.ci95[0] <= record.value <= record.ci95[1]
    chance = record.chance
    assert np.mean(values) == pytest.approx(chance, abs=6 * (chance / (2 * samples * 127)) ** 0.5)


def test_no_answer_is_read(tmp_path):
    """What is read are symbols: hardly one of them is the state that was asked for before it."""
    seen = []

    def listen(row):
        seen.append(row)
        return [0] * len(row)

    outcome = ask(tmp_path, listen, lengths=[64], samples=8, variants=["s5"])
    assert len(seen) == len(outcome.samples) == 8 and all(len(row) == 63 for row in seen)
    for row in seen:
        states = tracker(row)[1:]
        shared = sum(token == state for token, state in zip(row[2:], states))  # an input that is the last state
        assert row[0] == DOCUMENT and shared < 10


def test_a_single_answer_has_its_chance_too(tmp_path):
    outcome = ask(tmp_path, tracker, lengths=[4], samples=2, variants=["s3"])
    (record,) = [r for r in outcome.records if r.metric == "exact_match"]
    assert (record.value, record.chance) == (1.0, pytest.approx(1 / 6))
    assert not records(outcome, "accuracy")
