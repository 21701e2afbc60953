import numpy as np
import pytest

from zoo.data import DataError
from zoo.data.qa import QASet, read_squad
from zoo.data.qa.compose_qa import needed_tokens
from zoo.data.recall.base import Place
from zoo.data.recall.samples import RecallError


def test_every_record_once_in_an_order_of_the_seed(records, encoder):
    questions = QASet("colours", tuple(records))
    assert questions.count == 8 and questions.has_depth and questions.has_zero_length
    orders = [[questions.sample(Place(i, None, seed=seed), encoder).id for i in range(8)] for seed in (0, 0, 1)]
    assert sorted(orders[0]) == sorted(f"colours-{record.id}" for record in records)
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] == [questions.sample(Place(i, 300, 0.5), encoder).id for i in range(8)]
    assert orders[0] == [questions.without_context(Place(i, None), encoder, None).id for i in range(8)]


def test_samples_depend_on_their_place_alone(records, encoder):
    first, second = (QASet("colours", tuple(order)) for order in (records, records[::-1]))
    for place in (Place(3, 300, 0.5), Place(3, 300, None, seed=2), Place(3, 250, 0.0)):
        a, b = first.sample(place, encoder), first.sample(place, encoder)
        assert np.array_equal(a.tokens, b.tokens) and len(a) == place.length
        assert second.sample(place, encoder).id == a.id
    contexts = {first.sample(Place(i, 300, 0.5), encoder).tokens.tobytes() for i in range(8)}
    assert len(contexts) == 8


def test_places_that_are_not_there(records, encoder):
    questions = QASet("colours", tuple(records))
    for index in (8, -1):
        with pytest.raises(
            RecallError, match=rf"colours has 8 records.* no sample {index}\. Choose task\.samples up to 8"
        ):
            questions.sample(Place(index, 300), encoder)
    with pytest.raises(RecallError, match=r"for evaluation only.*split='train'"):
        questions.without_context(Place(0, 300, split="train"), encoder)


def test_sets_are_checked(records):
    with pytest.raises(RecallError, match=r"truncate='end': expected one of error, middle"):
        QASet("colours", tuple(records), truncate="end")
    with pytest.raises(RecallError, match=r"colours has no records"):
        QASet("colours", ())
    with pytest.raises(DataError, match=r"file line 2: the id 'r1' is that of file line 2 too"):
        QASet("colours", (records[1], records[1]))


def test_depth_is_for_one_text_among_others(records, make_record):
    two = make_record(20, paragraphs=("Amber it is.", "So it is."))
    last = make_record(20, kind="completion")
    assert not QASet("s", (*records, two)).has_depth and not QASet("s", (*records, last)).has_depth
    documents = QASet("s", tuple(records), fill=False)
    assert not documents.has_depth and not documents.has_zero_length


def test_records_that_fit_a_length(records, encoder):
    questions = QASet("colours", tuple(records))
    needed = {f"colours-{record.id}": needed_tokens(record, encoder) for record in records}
    length = sorted(needed.values())[3]
    kept = questions.fitting(length, encoder)
    ids = [kept.sample(Place(i, length, 0.5), encoder).id for i in range(kept.count)]
    assert sorted(ids) == sorted(name for name, tokens in needed.items() if tokens <= length) and kept.count >= 4
    whole = [questions.sample(Place(i, None), encoder).id for i in range(8)]
    assert ids == [name for name in whole if name in ids]  # the same order as before
    most = needed[ids[0]] + sum(len(encoder(f"{r.paragraphs[0]}\n")) for r in records if f"colours-{r.id}" != ids[0])
    assert len(kept.sample(Place(0, most, 1.0), encoder)) == most  # the paragraphs of all eight still distract
    assert questions.fitting(10_000, encoder).count == 8
    with pytest.raises(RecallError, match=rf"no record fits length=20 .* from {min(needed.values())} on"):
        questions.fitting(20, encoder)
    cut = QASet("colours", tuple(records), fill=False, truncate="middle")
    assert cut.fitting(min(needed.values()) - 1, encoder).count == 8


def test_the_recipe_changes_with_whatever_samples_depend_on(records, encoder):
    base = QASet("colours", tuple(records))
    others = [
        QASet("other", tuple(records)),
        QASet("colours", tuple(records[:-1])),
        QASet("colours", tuple(records), fill=False),
        QASet("colours", tuple(records), truncate="middle"),
        base.fitting(sorted(needed_tokens(r, encoder) for r in records)[3], encoder),
    ]
    recipes = [str(questions.recipe) for questions in (base, *others)]
    assert len(set(recipes)) == 6 and recipes[0] == str(QASet("colours", tuple(records)).recipe)


def test_a_real_file(shared_data, encoders):
    encoder = encoders["bytes"]
    questions = QASet("xquad", tuple(read_squad(shared_data / "squad" / "xquad_en_dev.json"))).fitting(1024, encoder)
    by_id = {f"xquad-{record.id}": record for record in questions.records}
    assert questions.count > 100
    for index in range(12):
        sample = questions.sample(Place(index, 2048, 0.5), encoder)
        record = by_id[sample.id]
        text = encoder.decode(sample.tokens)
        assert len(sample) == 2048
        assert text.endswith(f"\nQuestion: {record.question}\nAnswer: {record.answers[0]}")
        context = text[: -len(f"Question: {record.question}\nAnswer: {record.answers[0]}")]
        elsewhere = context.replace(record.paragraphs[0], "").lower().replace(" ", "")
        assert record.paragraphs[0] in context
        if len(record.answers[0]) >= 4:
            assert record.answers[0].lower().replace(" ", "") not in elsewhere
