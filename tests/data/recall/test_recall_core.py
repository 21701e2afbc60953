import random
from dataclasses import dataclass, replace
from itertools import islice, pairwise, product
from typing import ClassVar

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from zoo.data import TextSource, TokenStore
from zoo.data.documents import DataError
from zoo.data.recall.base import Place, RecallTask
from zoo.data.recall.compose import Facts, compose
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.haystack import LONGEST, NOISE, NoiseHaystack, StoreHaystack
from zoo.data.recall.samples import Question, RecallError, belongs, sample_rng


@dataclass(frozen=True)
class Color(RecallTask):
    """One fact, with a number below ``many``."""

    name: ClassVar[str] = "colour"
    many: int = 1000

    def draw(self, rng, length, encoder):
        number = rng.randrange(self.many)
        question = Question("Which one? It is", f" {number:03d}", (" 007", " 008", f" {number:03d}"))
        return Facts((fact_of(number),), (question,), instruction="Read this.\n")


def fact_of(number):
    return f"It is {number:03d}.\n"


def numbered(count, **options):
    """Facts "Line 0.", "Line 1.", ... and a question."""
    facts = tuple(f"Line {number}.\n" for number in range(count))
    return Facts(facts, (Question("Is it? It is", " so"),), **options)


def positions(text, count):
    return [text.index(f"Line {number}.\n") for number in range(count)]


def tokens_of(sample):
    return sample.tokens.tolist()


class Lines:
    """A haystack of given lines, again and again."""

    name = fingerprint = "lines"

    def __init__(self, *units):
        self._units = units

    def units(self, rng):
        while True:
            yield from self._units


@pytest.fixture
def store(encoder, tmp_path):
    texts = ["First line.\nSecond one.\n\nAfter a blank.\n", "x" * 300, "Größe 水\nthe end"]
    (tmp_path / "train").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "train" / f"{number}.txt").write_text(text, encoding="utf-8")
    return TokenStore.open_or_build(TextSource(str(tmp_path)), "train", encoder.tokenizer, tmp_path / "c", False)


def test_samples_have_exactly_the_length_asked_for(encoder, noise, store):
    task = Color()
    shortest = len(task.sample(Place(0, None), encoder, noise))
    for haystack in (noise, StoreHaystack(encoder, store)):
        for length in [*range(shortest, shortest + 130), 500, 2047]:
            sample = task.sample(Place(length, length, depth=0.5), encoder, haystack)
            assert sample.tokens.shape == (length,)
            assert sample.tokens.dtype == np.int64
            assert tokens_of(sample).count(encoder.document_token) == 1
            assert sample.tokens[0] == encoder.document_token


def test_no_length_means_no_filler(encoder, noise):
    text = encoder.decode(Color().sample(Place(3, None), encoder, noise).tokens)
    instruction, fact, question = text.splitlines()
    assert instruction == "Read this."
    assert question == "Which one? " + fact.removesuffix(".")


def test_the_shortest_length_is_named_and_is_enough(encoder, noise):
    facts = numbered(2)
    with pytest.raises(RecallError, match=r"need \d+ tokens") as caught:
        compose(facts, encoder, noise, random.Random(0), 5, None)
    needed = int(str(caught.value).split("need ")[1].split()[0])
    made = compose(facts, encoder, noise, random.Random(0), needed, None)
    assert len(made.tokens) == needed
    assert encoder.decode(made.tokens) == "Line 0.\nLine 1.\nIs it? It is so"
    with pytest.raises(RecallError, match=f"more than length={needed - 1}"):
        compose(facts, encoder, noise, random.Random(0), needed - 1, None)


def test_a_task_that_does_not_fit_says_what_to_do(encoder, noise):
    with pytest.raises(RecallError, match=r"colour: .* more than length=9\. Choose a longer task\.lengths"):
        Color().sample(Place(0, 9), encoder, noise)


def test_filler_without_tokens_is_an_error_and_no_endless_loop(encoder):
    with pytest.raises(RecallError, match="no tokens"):
        compose(numbered(1), encoder, Lines(()), random.Random(0), 300, None)


def test_depth_0_is_first_and_depth_1_last(encoder, noise):
    longest = max(len(encoder(sentence)) for sentence in NOISE)
    fact = encoder("Line 0.\n")
    end = len(encoder("Is it? It is")) + len(encoder(" so"))
    for seed, length in product(range(5), (150, 400, 1200)):
        for depth in (0.0, 0.25, 0.5, 1.0):
            made = compose(numbered(1), encoder, noise, random.Random(seed), length, depth)
            found = [at for at in range(length) if tuple(made.tokens[at : at + len(fact)].tolist()) == fact]
            assert len(found) == 1
            context = length - 1 - end
            if depth == 0:
                assert found[0] - 1 < longest  # nothing but the end of a line stands before it
                assert made.depth == 0
            elif depth == 1:
                assert found[0] == length - end - len(fact)
            reached = (found[0] - 1) / context
            assert abs(reached - depth) * context <= longest * (1 + (0 < depth < 1)) + len(fact)
            assert abs(reached - made.depth) * context <= longest + len(fact)


def test_without_a_depth_the_fact_may_stand_anywhere(encoder, noise):
    depths = [compose(numbered(1), encoder, noise, random.Random(n), 1500, None).depth for n in range(200)]
    assert np.histogram(depths, 4, (0, 1))[0].min() > 25


@pytest.mark.parametrize("depth", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("placed", [None, 0, 2, 4])
def test_ordered_facts_keep_their_order(encoder, noise, depth, placed):
    for seed in range(20):
        made = compose(numbered(5, placed=placed), encoder, noise, random.Random(seed), 700, depth)
        places = positions(encoder.decode(made.tokens), 5)
        assert places == sorted(places)


def test_facts_in_no_order_stand_in_every_order(encoder, noise):
    orders = set()
    for seed in range(100):
        facts = numbered(3, placed=None, ordered=False)
        made = compose(facts, encoder, noise, random.Random(seed), 700, None)
        orders.add(tuple(np.argsort(positions(encoder.decode(made.tokens), 3))))
    assert len(orders) == 6


@pytest.mark.parametrize("length", [None, 150, 600])
def test_depth_counts_facts_in_no_order_like_filler(encoder, noise, length):
    for seed, (depth, before) in product(range(20), ((0.0, 0), (1.0, 5))):
        facts = numbered(6, placed=2, ordered=False)
        made = compose(facts, encoder, noise, random.Random(seed), length, depth)
        places = positions(encoder.decode(made.tokens), 6)
        assert sum(place < places[2] for place in places) == before


def test_own_filler_replaces_the_haystack(encoder, noise):
    facts = numbered(1, filler=lambda rng: (f"{rng.randrange(10)} sheep.\n" for _ in iter(int, 1)))
    text = encoder.decode(compose(facts, encoder, noise, random.Random(0), 400, 0.5).tokens)
    assert not any(sentence in text for sentence in NOISE)
    assert text.count("sheep.\n") > 5


def test_answers_are_where_they_say(encoder, noise):
    for index in range(20):
        sample = Color().sample(Place(index, 256), encoder, noise)
        (answer,) = sample.answers
        value = encoder.decode(sample.tokens[answer.start : answer.stop])
        text = encoder.decode(sample.tokens)
        assert fact_of(int(value)) in text
        assert text.endswith("Which one? It is" + value)
        assert answer.stop == len(sample)
        assert answer.references == (value.strip(),)
        assert [encoder.decode(other) for other in answer.others] == [o for o in (" 007", " 008") if o != value]


def test_several_questions_follow_each_other(encoder, noise):
    questions = (Question("A is", " one", references=("1", "one")), Question("\nB is", " two"))
    made = compose(replace(numbered(1), questions=questions), encoder, noise, random.Random(0), 200, None)
    texts = [encoder.decode(made.tokens[a.start : a.stop]) for a in made.answers]
    assert texts == [" one", " two"]
    assert [a.references for a in made.answers] == [("1", "one"), ("two",)]
    assert encoder.decode(made.tokens).endswith("A is one\nB is two")


def test_the_filler_never_has_the_fact(encoder, noise):
    for index in range(30):
        sample = Color().sample(Place(index, 1024), encoder, noise)
        value = encoder.decode(sample.tokens[slice(sample.answers[0].start, None)])
        text = encoder.decode(sample.tokens)
        assert text.count(fact_of(int(value))) == 1
        assert text.count(value) == 2


def test_answers_of_tokenizers_that_put_a_space_before_every_text_are_as_in_the_context():
    """As Llama 2's: a piece on its own begins with one more token than the same words inside a text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    text = ["The value is 4821734.\nWhere is the red apple?\n0123456789"] * 20
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"]))
    encoder = Encoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>"))
    whole, answer = encoder("The value is 4821734.\n"), encoder(" 4821734")
    assert encoder.decode(answer).strip() == "4821734" and encoder.decode(whole) == "The value is 4821734.\n"
    assert any(whole[i : i + len(answer)] == answer for i in range(len(whole)))
    assert len(encoder("The")) == len(encoder("e The")) - len(encoder("e"))  # nothing in front


def test_samples_are_a_function_of_their_place(encoder, noise):
    place = Place(5, 300, depth=0.5)
    first = Color().sample(place, encoder, noise)
    for index in range(4):  # others, and other objects, change nothing
        Color().sample(Place(index, 300), encoder, noise)
    again = Encoder(encoder.tokenizer)
    second = Color().sample(place, again, NoiseHaystack(again))
    assert (first.id, tokens_of(first), first.answers) == (second.id, tokens_of(second), second.answers)


@pytest.mark.parametrize("change", [{"index": 6}, {"seed": 1}, {"depth": 0.75}, {"split": "train"}, {"length": 301}])
def test_other_places_have_other_samples(encoder, noise, change):
    place = Place(5, 300, depth=0.5)
    one, other = (Color().sample(p, encoder, noise) for p in (place, replace(place, **change)))
    assert one.id != other.id
    assert tokens_of(one) != tokens_of(other)


def test_train_and_eval_share_no_content(encoder, noise):
    task = Color(many=60)
    drawn = {}
    for split in ("train", "eval"):
        samples = [task.sample(Place(n, length, split=split), encoder, noise) for n in range(60) for length in (60, 80)]
        drawn[split] = {encoder.decode(s.tokens[s.answers[0].start :]) for s in samples}
    assert not drawn["train"] & drawn["eval"]
    assert min(len(drawn["train"]), len(drawn["eval"])) > 15


def test_a_task_with_one_content_has_samples_of_one_split_alone(encoder, noise):
    task, made = Color(many=1), []
    for split in ("train", "eval"):
        try:
            made.append(task.sample(Place(0, 100, split=split), encoder, noise))
        except RecallError as error:
            assert "too few" in str(error)
    assert len(made) == 1


def test_splits_are_halves_and_have_names():
    share = np.mean([belongs([n], "train") for n in range(2000)])
    assert 0.45 < share < 0.55
    assert all(belongs([n], "train") != belongs([n], "eval") for n in range(100))
    with pytest.raises(ValueError, match="'test': expected one of train, eval"):
        belongs([1], "test")


def test_without_context_only_the_question_is_left(encoder, noise):
    place = Place(7, 300, depth=0.5)
    whole, bare = Color().sample(place, encoder, noise), Color().without_context(place, encoder, noise)
    value = encoder.decode(whole.tokens[whole.answers[0].start :])
    assert encoder.decode(bare.tokens) == f"Read this.\nWhich one? It is{value}"
    assert bare.id == whole.id
    assert bare.depth is None
    assert bare.answers[0].others == whole.answers[0].others
    assert encoder.decode(bare.tokens[bare.answers[0].start : bare.answers[0].stop]) == value


def test_noise_is_whole_sentences_and_none_twice_in_a_row(encoder, noise):
    units = [encoder.decode(unit) for unit in islice(noise.units(random.Random(0)), 500)]
    assert set(units) == set(NOISE)
    assert all(one != next for one, next in pairwise(units))


def test_lines_of_a_corpus_follow_each_other(encoder, store):
    haystack = StoreHaystack(encoder, store)
    stored = [encoder.document_token, *np.array(store.tokens).tolist() * 4]
    text = [token for token in stored if token != encoder.document_token]
    for seed in range(30):
        units = list(islice(haystack.units(random.Random(seed)), 12))
        assert all(0 < len(unit) <= LONGEST for unit in units)
        for unit in units:
            body = encoder.decode(unit[:-1])
            assert "\n" not in body.rstrip("\n")  # at most one line
        joined = ",".join(str(token) for unit in units for token in unit)
        assert f",{joined}," in "," + ",".join(map(str, text)) + ","


class OnlyEnds:
    """A store of two empty documents."""

    key = "empty"

    def __init__(self, eos):
        self.eos, self.tokens = eos, np.array([eos, eos])

    def __len__(self):
        return 2


def test_a_corpus_without_text_is_refused(encoder):
    with pytest.raises(DataError, match="corpus has no text"):
        StoreHaystack(encoder, OnlyEnds(encoder.document_token))


def test_ids_are_all_but_the_special_ones(encoder):
    assert encoder.document_token not in encoder.ids
    assert len(encoder.ids) == encoder.vocab_size - 1
    assert encoder("") == ()
    assert encoder.decode([*encoder("a b\n"), encoder.document_token]) == "a b\n"


def test_random_numbers_depend_on_the_whole_key():
    keys = [("a", 1), ("a", 2), ("a", "1"), ("a1",), (["a", 1],)]
    assert len({sample_rng(*key).random() for key in keys}) == len(keys)
    assert sample_rng("a", 1).random() == sample_rng("a", 1).random()
