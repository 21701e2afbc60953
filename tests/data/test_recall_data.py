"""Recall samples in the batches of a run: whose they are, what counts in them, and that nobody sees them twice."""

import copy
import itertools
import pickle
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.data.recall.state_oracle import FIRST, track
from tests.tiers import in_ci
from zoo.data import BatchPlan, TokenStore, TrainBatches, build_tokenizer
from zoo.data.datamodule import LanguageData
from zoo.data.recall.base import RecallTask
from zoo.data.recall.build import build_task
from zoo.data.recall.compose import Facts
from zoo.data.recall.options import RecallOptions, read_entries
from zoo.data.recall.samples import Question, RecallError
from zoo.data.recall_data import RecallRows, RecallValidation
from zoo.registry import RECALL_TASKS

LENGTH = 256
TASKS = {"mqar": {"variants": ["pairs4", "pairs8"]}, "niah": {"weight": 2.0, "variants": ["single", "multikey"]}}
COUNTRIES = tuple("ABCDEFGHIJKLMNOP")


@dataclass(frozen=True)
class Capitals(RecallTask):
    """A toy of sixteen contents, so that the splits would soon meet if they could."""

    name: ClassVar[str] = "capitals"
    padding: int = 0

    def draw(self, rng, length, encoder):
        land = rng.choice(COUNTRIES)
        fact = f"The capital of {land} is {land.lower()}{'.' * self.padding}.\n"
        return Facts((fact,), (Question(f"The capital of {land} is", f" {land.lower()}"),))


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(RECALL_TASKS._entries, "capitals", Capitals)


@pytest.fixture
def tokenizer(cache):
    return build_tokenizer({"kind": "bytes"}, None, cache)


@pytest.fixture
def stores(list_source, tokenizer, cache):
    source = list_source(*(f"text {n}: {'abc ' * (n % 23)}\nand a second line\n" * 4 for n in range(60)))
    return {
        split: TokenStore.open_or_build(source, split, tokenizer, cache, False) for split in ("train", "validation")
    }


@pytest.fixture
def rows(stores, tokenizer):
    """Function that makes rows with other options."""

    def make(length=LENGTH, seed=0, **options):
        return RecallRows(
            RecallOptions.read({"tasks": TASKS, **options}, "data.recall"), tokenizer, stores, length, seed
        )

    return make


def pieces(row, eos):
    """The samples of a row, cut where a document token stands; padding at the end is pieces of one token."""
    starts = [*np.flatnonzero(row["tokens"] == eos).tolist(), len(row["tokens"])]
    assert starts[0] == 0
    return list(itertools.pairwise(starts))


def text_of(tokenizer, tokens):
    return tokenizer.decode(tokens.tolist(), skip_special_tokens=True)


@pytest.mark.parametrize("kinds", [["noise"], ["corpus"], ["noise", "corpus"]])
def test_the_answers_of_a_row_stand_in_the_context_of_their_own_sample(rows, tokenizer, kinds):
    """Read as text: the number that a question asks for is the one that a sentence of the same sample tells."""
    made = rows(length=400, tasks={"niah": {"variants": ["single", "multikey", "multiquery"]}}, haystack=kinds)
    answers = 0
    for number in range(30):
        row = made.row(number)
        for begin, end in pieces(row, tokenizer.eos_token_id):
            marks = row["answers"][max(begin - 1, 0) : end - 1]
            context = row["tokens"][begin : max(begin, 1) + np.flatnonzero(marks)[0]]  # up to the first answer
            told = dict(re.findall(r"The number for (\S+) is (\d+)\.\n", text_of(tokenizer, context)))
            for mark in sorted(set(marks.tolist()) - {0}):
                places = 1 + np.flatnonzero(row["answers"] == mark)
                assert places[-1] - places[0] == len(places) - 1
                before = text_of(tokenizer, row["tokens"][begin : places[0]])
                key = re.findall(r"The number for (\S+) is$", before)
                assert len(key) == 1
                assert text_of(tokenizer, row["tokens"][places]) == f" {told[key[0]]}"
                answers += 1
    assert answers > 50


def test_weights_and_documents_of_a_row(rows, tokenizer):
    made = rows(answer_weight=5.0, context_weight=0.25, tight=0.0)
    lengths = []
    for number in range(60):
        row = made.row(number)
        assert {name: value.shape for name, value in row.items()} == {
            "tokens": (LENGTH + 1,),
            **dict.fromkeys(("targets", "weights", "answers", "documents"), (LENGTH,)),
        }
        assert np.array_equal(row["targets"], row["tokens"][1:])
        spans = pieces(row, tokenizer.eos_token_id)
        samples = [span for span in spans if span[1] - span[0] > 1]
        filled = samples[-1][1]
        assert spans[: len(samples)] == samples  # only padding is a document token alone
        answered = row["answers"] > 0
        inside = np.arange(1, LENGTH + 1) < filled
        assert np.array_equal(row["weights"], np.where(answered, 5.0, np.where(inside, 0.25, 0.0)).astype(np.float32))
        wanted = np.concatenate([np.full(e - b, n) for n, (b, e) in enumerate(samples)])[:LENGTH]
        assert np.array_equal(row["documents"][: len(wanted)], wanted)
        assert not np.isin(row["documents"][len(wanted) :], wanted).any()
        lengths += [end - begin for begin, end in samples]
        assert 0 <= LENGTH + 1 - filled < min(made.least)
    assert len(set(lengths)) > 20 and lengths.count(LENGTH + 1) > 5 and min(lengths) == min(made.least)


def test_labels_of_a_row_are_targets_and_never_read(rows, tokenizer):
    """Several samples a row; each symbol is followed by the state of its own sample, which the row has as target."""
    options = {"task": "state_tracking", "variants": ["parity", "s5"], "asked": 1.0}
    made = rows(tasks={"states": options}, answer_weight=1.0, shortest=20)
    counts = []
    for number in range(10):
        row = made.row(number)
        bounds = np.flatnonzero(np.diff(row["documents"], prepend=-1))
        for begin, end in itertools.pairwise([*bounds.tolist(), LENGTH]):
            asked = begin + np.flatnonzero(row["answers"][begin:end])
            if not len(asked):
                continue  # what is left of the row is nobody's
            assert asked.tolist() == list(range(begin + 1, asked[-1] + 1)), "behind every symbol"
            symbols, group = row["tokens"][asked].tolist(), "parity" if row["tokens"][asked].max() < 2 else "s5"
            states = track(group, [symbol - FIRST[group] for symbol in symbols])
            assert row["targets"][asked].tolist() == [FIRST[group] + state for state in states]
            counts.append(len(asked))
        assert np.array_equal(row["weights"], (row["answers"] > 0).astype(np.float32))
        assert len(set(row["answers"].tolist()) - {0}) == (row["answers"] > 0).sum(), "each state is an answer"
    assert len(counts) > 20 and min(counts) == 18


def test_a_row_as_short_as_its_samples_is_one_of_them(rows):
    made = rows(length=64, shortest=64, tasks={"state_tracking": {"asked": 1.0}})
    for number in range(5):
        row = made.row(number)
        assert (row["answers"] > 0).tolist() == [False, *[True] * 63], "behind each of the 63 symbols that are read"
        assert not row["documents"].any()


def test_labels_reach_validation_and_mixed_batches(stores, rows):
    tasks = {"state_tracking": {"variants": ["s3"]}, "mqar": {}}
    made = rows(tasks=tasks, val_samples=4)
    batch = RecallValidation(made, 0, 1, 4)[0]
    expected = [made.validation(number)[0]["targets"] for number in range(4)]
    assert np.array_equal(batch["targets"], expected)
    labeled = (batch["targets"] != batch["tokens"][:, 1:]).any(1).tolist()
    assert labeled == [True, False] * 2 and batch["tasks"].tolist() == [0, 1] * 2


@pytest.mark.parametrize("tight", [*in_ci(0.0, 0.5), 1.0])
def test_tight_samples_are_as_short_as_their_task_allows(rows, tokenizer, tight):
    made = rows(tight=tight, tasks={"mqar": {"variants": ["pairs4"]}}, shortest=17)
    starts = [pieces(made.row(number), tokenizer.eos_token_id)[0] for number in range(200)]  # none is cut short
    assert made.least == [17], "a document token, four pairs, and each once more"
    share = sum(end == 17 for _, end in starts) / len(starts)
    assert abs(share - tight) < 0.12 if 0 < tight < 1 else abs(share - tight) < 0.03


def test_rows_are_a_function_of_their_number(rows):
    one, other = rows(), pickle.loads(pickle.dumps(rows()))
    numbers = [0, 1, 7, 10**10]
    forwards = [one.row(number) for number in numbers]
    backwards = [other.row(number) for number in reversed(numbers)][::-1]
    for a, b in zip(forwards, backwards):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert len({row["tokens"].tobytes() for row in [*forwards, rows(seed=1).row(0)]}) == 5
    assert one.fingerprint() == other.fingerprint()
    changed = [rows(seed=1), rows(answer_weight=9.0), rows(tasks={"niah": {}}), rows(length=200)]
    assert len({made.fingerprint() for made in [one, *changed]}) == 5


def test_tasks_come_as_often_as_their_weights_say(rows, tokenizer, toys):
    """First samples of rows, which any task fits, told by their text: one in four is of niah."""
    made = rows(tasks={"capitals": {"weight": 3.0}, "niah": {"weight": 1.0}, "mqar": {"weight": 0}}, haystack=["noise"])
    assert made.names == ["capitals", "niah"]
    first = []
    for number in range(400):
        row = made.row(number)
        begin, end = pieces(row, tokenizer.eos_token_id)[0]
        first.append("The number for" in text_of(tokenizer, row["tokens"][begin:end]))
    assert abs(sum(first) - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5


def test_what_is_trained_on_is_never_validated_on(rows, tokenizer, toys):
    made = rows(tasks={"capitals": {}}, val_samples=200, haystack=["noise"])

    def asked(row):
        return set(re.findall(r"The capital of (\w) is \w", text_of(tokenizer, row["tokens"])))

    trained = set().union(*(asked(made.row(number)) for number in range(200)))
    validated = set().union(*(asked(made.validation(number)[0]) for number in range(200)))
    assert trained and validated and not trained & validated
    assert trained | validated == set(COUNTRIES)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 2 / 3, 1.0])
def test_recall_rows_are_the_share_and_the_corpus_keeps_its_order(share):
    plain, mixed = BatchPlan(1000, 10, 7, seed=3), BatchPlan(1000, 10, 7, seed=3, recall_share=share)
    places = np.concatenate([mixed.starts(step) for step in range(100)])
    recall = places < 0
    for count in range(1, 701):
        assert recall[:count].sum() == int(np.floor(count * share))
    corpus = places[~recall]
    assert corpus.tolist() == plain.places(np.arange(len(corpus))).tolist()


def batches(stores, made, share=0.5, accumulate=1, rank=0, world=1, micro=6, isolate=True):
    plan = BatchPlan(stores["train"].num_tokens, made.length, 6, 1, share)
    return TrainBatches(stores["train"], plan, 3, accumulate, rank, world, micro, isolate, made)


@pytest.mark.parametrize("share", [1 / 3, 1.0])
def test_a_batch_is_windows_and_recall_rows_by_their_numbers(stores, rows, share):
    made = rows()
    stream = batches(stores, made, share)
    batch = next(iter(stream))
    places = stream.plan.starts(3)
    assert batch["starts"].tolist() == places[places >= 0].tolist()
    assert batch["mask"].all(1).tolist() == batch["mask"].any(1).tolist() == (places >= 0).tolist()
    for row, place in enumerate(places.tolist()):
        if place < 0:
            for name, value in made.row(18 + row).items():
                assert np.array_equal(batch[name][row].numpy(), value), name
        else:
            window = stores["train"].tokens[place : place + LENGTH + 1]
            assert batch["tokens"][row].tolist() == window.tolist()
            assert torch.equal(batch["targets"][row], batch["tokens"][row, 1:])
            assert (batch["weights"][row] == 1).all() and not batch["answers"][row].any()
            expected = np.cumsum(window[:-1] == stores["train"].eos)
            assert (batch["documents"][row].numpy() == expected - expected[0]).all()
    joined = next(iter(batches(stores, made, share, isolate=False)))  # the corpus is; samples never are
    corpus = joined["mask"].all(1)
    assert not joined["documents"][corpus].any()
    assert torch.equal(joined["documents"][~corpus], batch["documents"][~corpus])


@pytest.mark.parametrize(("world", "accumulate"), [(1, 3), (2, 1), (2, 3), (3, 2)])
def test_the_rows_depend_on_neither_world_nor_accumulation(stores, rows, world, accumulate):
    made, micro = rows(), 6 // (world * accumulate)
    whole = [batch for batch, _ in zip(batches(stores, made), range(2))]
    parts = [iter(batches(stores, made, 0.5, accumulate, rank, world, micro)) for rank in range(world)]
    for batch in whole:
        found = [next(parts[rank]) for _ in range(accumulate) for rank in range(world)]
        for name in batch:
            assert torch.equal(torch.cat([part[name] for part in found]), batch[name]), name


@pytest.mark.parametrize("workers", [1, 2])
def test_the_stream_does_not_depend_on_workers(stores, rows, workers):
    made = rows()
    expected = itertools.islice(batches(stores, made, accumulate=3, micro=2), 7)
    loaded = DataLoader(batches(stores, made, accumulate=3, micro=2), batch_size=None, num_workers=workers)
    for a, b in zip(expected, loaded):
        assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("world", "micro"), [(1, 1), (1, 5), (2, 3), (3, 4)])
def test_validation_asks_each_sample_once_on_however_many_ranks(rows, world, micro):
    made = rows(val_samples=9)  # of two tasks: five each
    alone = [made.validation(number) for number in range(10)]
    ranks = [RecallValidation(made, rank, world, micro) for rank in range(world)]
    assert len({len(rank) for rank in ranks}) == 1
    found = []
    for index, rank in itertools.product(range(len(ranks[0])), range(world)):
        batch = ranks[rank][index]
        assert batch["tokens"].shape == (micro, LENGTH + 1) and batch["answers"].shape == (micro, LENGTH)
        found += [(t, a, k) for t, a, k in zip(batch["tokens"], batch["answers"], batch["tasks"].tolist())]
    for (tokens, answers, task), (row, expected) in zip(found, alone):
        assert np.array_equal(tokens, row["tokens"]) and np.array_equal(answers, row["answers"])
        assert task == expected and answers.any()
        assert row["tokens"][LENGTH] == made.tokenizer.eos_token_id  # the sample has one token less than a row
    assert not any(answers.any() for _, answers, _ in found[10:])
    assert [task for _, _, task in found[:10]] == [0, 1] * 5
    with pytest.raises(IndexError):
        ranks[0][len(ranks[0])]


def test_the_facts_are_plain_and_name_every_variant(rows):
    facts = rows(share=0.25).facts()
    assert facts["share"] == 0.25 and facts["length"] == LENGTH and facts["shortest"] == 32
    assert list(facts["tasks"]) == ["mqar", "niah"]
    assert facts["tasks"]["mqar"]["pairs4"] == {
        "task": "mqar",
        "weight": 0.5,
        "pairs": 4,
        "queries": None,
        "power": 0.01,
        "filler": True,
    }
    assert set(facts["tasks"]["niah"]) == {"single", "multikey"}


def test_entries():
    assert [(e.name, e.variant, e.weight) for e in read_entries("mqar", None)] == [("mqar", "pairs8", 1.0)]
    (own,) = read_entries("few", {"task": "mqar", "variants": ["pairs4"], "weight": 3, "power": 1.0})
    assert (own.name, own.weight, own.task) == ("few", 3.0, build_task("mqar", "pairs4", power=1.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, r"data\.recall\.share=1\.5: expected a number from 0 to 1"),
        ({"share": -0.1}, r"data\.recall\.share=-0\.1"),
        ({"share": float("nan")}, r"data\.recall\.share=nan"),
        ({"shortest": 1}, r"data\.recall\.shortest=1: expected a whole number >= 2"),
        ({"tight": 1.1}, r"data\.recall\.tight=1\.1: expected a number from 0 to 1"),
        ({"answer_weight": -1}, r"data\.recall\.answer_weight=-1"),
        ({"val_samples": 0}, r"data\.recall\.val_samples=0"),
        ({"haystack": ["hay"]}, r"data\.recall\.haystack=\[hay\]: expected a list, each one of noise, corpus"),
        ({"haystack": []}, r"data\.recall\.haystack=\[\]: expected a list"),
        ({"shares": 1}, r"data\.recall\.shares: unknown option; did you mean data\.recall\.share\?"),
        ({"tasks": {"mqra": {}}}, r"tasks\.mqra: unknown task 'mqra'; did you mean mqar\?"),
        ({"tasks": {"mqar": {"variants": ["x"]}}}, r"tasks\.mqar: mqar has no variant 'x': expected one of pairs8"),
        (
            {"tasks": {"mqar": {"pair": 3}}},
            r"tasks\.mqar\.pair: unknown option; did you mean .*mqar\.pairs\?",
        ),
        ({"tasks": {"mqar": {"weight": -1}}}, r"tasks\.mqar\.weight=-1: expected a number >= 0"),
        ({"tasks": {"mqar": {"weight": 0}}}, r"has no task of a weight above 0"),
        ({"tasks": {}}, r"has no task"),
        (
            {"tasks": {"kv": {"variants": ["uuid"]}}},
            r"uuid of data\.recall\.tasks\.kv does not fit data\.length=256 \(kv: ",
        ),
    ],
)
def test_wrong_options_say_what_exists_before_training(rows, options, message):
    with pytest.raises(ValueError, match=message):
        rows(**options)


def test_a_task_that_fits_only_sometimes_leaves_padding_and_never_stops_a_run(rows, tokenizer, monkeypatch, toys):
    made = rows(tasks={"capitals": {}}, length=100, haystack=["noise"])
    grown = copy.copy(made)
    grown.entries = read_entries("capitals", {"padding": 200})
    row = grown.row(0)
    assert (row["tokens"] == tokenizer.eos_token_id).all() and not row["weights"].any()
    with pytest.raises(RecallError, match=r"default of data\.recall\.tasks\.capitals does not fit data\.length=100"):
        grown.validation(0)


def test_language_data_mixes_what_it_is_told(list_source, cache):
    source = list_source(*(f"text {n}\n" * 40 for n in range(60)))
    options = {"length": LENGTH, "batch_size": 4, "cache_dir": str(cache)}
    plain = LanguageData(source, {"kind": "bytes"}, **options)
    mixed, only = (
        LanguageData(
            source, {"kind": "bytes"}, **options, recall=RecallOptions(tasks=TASKS, share=share, val_samples=6)
        )
        for share in (0.5, 1.0)
    )
    for data in (plain, mixed, only):
        data.prepare()
    assert set(mixed.fingerprint) == set(plain.fingerprint) | {"recall"}
    batch = next(iter(mixed.train_dataloader()))
    assert batch["mask"].any(1).tolist() == [True, False, True, False]
    text, recall = list(plain.val_dataloader()), 2
    found = list(mixed.val_dataloader())
    assert ["answers" in b for b in found] == [False] * len(text) + [True] * recall
    assert all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(text, found))
    assert ["answers" in b for b in only.val_dataloader()] == [True] * recall
