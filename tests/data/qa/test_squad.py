import json
import logging

import pytest

from zoo.data import DataError
from zoo.data.qa import load_set
from zoo.data.qa.records import QARecord, fold, mentions
from zoo.data.qa.squad import read_squad

CONTEXT = "The Normans gave their name to Normandy, a region in France."
ROW = {
    "id": "a1",
    "title": "Normans",
    "context": CONTEXT,
    "question": "Where is Normandy?",
    "answers": {"text": ["France", "in France", "France"], "answer_start": [53, 50, 53]},
}


def nested(*questions, context=CONTEXT):
    return {
        "version": "1.1",
        "data": [{"title": "Normans", "paragraphs": [{"context": context, "qas": list(questions)}]}],
    }


@pytest.fixture
def save(tmp_path):
    def save(name, content):
        file = tmp_path / name
        if isinstance(content, list) and name.endswith(".jsonl"):
            content = "".join(json.dumps(row) + "\n" for row in content)
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return file

    return save


def plain(records):
    return [(r.id, r.question, r.answers, r.paragraphs, r.distractors) for r in records]


def test_every_layout_gives_the_same_record(save):
    expected = [("a1", "Where is Normandy?", ("France", "in France"), (CONTEXT,), ())]
    question = {
        "id": "a1",
        "question": " Where is Normandy? ",
        "answers": [{"text": "France", "answer_start": 53}, {"text": "in France", "answer_start": 50}],
    }
    assert plain(read_squad(save("nested.json", nested(question)))) == expected
    assert plain(read_squad(save("rows.json", [ROW]))) == expected
    assert plain(read_squad(save("under_data.json", {"data": [ROW]}))) == expected
    assert plain(read_squad(save("one.json", ROW))) == expected
    assert plain(read_squad(save("rows.jsonl", [ROW]))) == expected
    assert plain(read_squad(save("listed.jsonl", [ROW | {"answers": ["France", "in France"]}]))) == expected
    rows = json.dumps(ROW) + "\n\n" + json.dumps(ROW | {"id": "a2"}) + "\r\n"
    for name in ("rows.txt", "lines.json", "rows.jsonl"):
        assert [record.id for record in read_squad(save(name, rows))] == ["a1", "a2"]
    assert read_squad(save("bom.jsonl", "\ufeff" + json.dumps(ROW)))[0].id == "a1"


def test_compressed_files_of_questions(tmp_path, suffix, pack):
    for name, text in (("rows.jsonl", json.dumps(ROW) + "\n"), ("nested.json", json.dumps({"data": [ROW]}))):
        file = tmp_path / f"{name}{suffix}"
        file.write_bytes(pack(suffix, text.encode()))
        assert [record.id for record in read_squad(file)] == ["a1"]
        assert load_set(file).name == name.partition(".")[0]
        file.write_bytes(b"as it is, not compressed")
        with pytest.raises(DataError, match=rf"{name}{suffix} cannot be decompressed"):
            read_squad(file)


def test_ids_are_made_where_there_are_none(save):
    rows = [{key: value for key, value in ROW.items() if key != "id"} for _ in range(2)]
    assert [r.id for r in read_squad(save("rows.jsonl", rows))] == ["1", "2"]
    questions = [{"question": "q", "answers": ["France"]}] * 2
    assert [r.id for r in read_squad(save("nested.json", nested(*questions)))] == ["1-1-1", "1-1-2"]


def test_documents_with_an_answer_are_needed_and_the_others_distract(save):
    docs = ["Paris is in France.", "Rome is in Italy.", "FRANCE has regions.", "Rome is in Italy."]
    row = {"question": "Where is Paris?", "docs": docs, "answers": ["France"]}
    (record,) = read_squad(save("rows.jsonl", [row]))
    assert record.paragraphs == ("Paris is in France.", "FRANCE has regions.")
    assert record.distractors == ("Rome is in Italy.",)
    (record,) = read_squad(save("yes.jsonl", [row | {"answers": "yes"}]))
    assert record.paragraphs == tuple(dict.fromkeys(docs)) and record.answers == ("yes",)


def test_the_answer_that_stands_in_the_context_comes_first(save):
    (record,) = read_squad(save("rows.jsonl", [ROW | {"answers": ["République", "france"]}]))
    assert record.answers == ("france", "République")
    (record,) = read_squad(save("part.jsonl", [ROW | {"context": "It cost 6M.", "answers": ["6"]}]))
    assert record.answers == ("6",)  # SQuAD has spans that end inside a word


def test_questions_without_an_answer_are_left_out_and_counted(save, caplog):
    rows = [
        ROW,
        ROW | {"id": "b", "answers": {"text": [], "answer_start": []}},
        ROW | {"id": "c", "is_impossible": True},
    ]
    with caplog.at_level(logging.WARNING):
        assert [r.id for r in read_squad(save("rows.jsonl", rows))] == ["a1"]
    assert "2 questions without an answer are left out" in caplog.text
    with pytest.raises(DataError, match=r"no question with an answer"):
        read_squad(save("none.jsonl", rows[1:]))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {k: v for k, v in ROW.items() if k != "question"},
            r"line 2: no 'question'; it has id, title, context, answers",
        ),
        (ROW | {"question": "  "}, r"line 2: 'question' is blank"),
        (ROW | {"context": ["x"]}, r"line 2: 'context' is list, not text"),
        (ROW | {"context": "half a \ud83d emoji France"}, r"line 2: 'context' has half a character"),
        (ROW | {"docs": []}, r"line 2: 'docs' is list, expected a list with at least one text"),
        ({k: v for k, v in ROW.items() if k != "answers"}, r"line 2: no 'answers'. Add a list"),
        (ROW | {"answers": 5}, r"line 2: 'answers' is int"),
        (ROW | {"answers": [None]}, r"line 2: 'answers' is NoneType, not text"),
        (ROW | {"answers": ["Spain"]}, r"line 2: the answer 'Spain' is not in its context. Correct"),
        (ROW, r"line 2: the id 'a1' is that of .*rows\.jsonl line 1 too"),
        ("text", r"line 2: str, not an object with 'question', 'context' and 'answers'"),
        (None, r"line 2: NoneType, not an object"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(save, row, message):
    with pytest.raises(DataError, match=rf"rows\.jsonl {message}"):
        read_squad(save("rows.jsonl", [ROW, row]))


def test_malformed_nesting_is_named(save):
    bad = {"id": "q9", "question": "Where?", "answers": [{"text": "Spain", "answer_start": 0}]}
    with pytest.raises(
        DataError, match=r"nested\.json article 1, paragraph 1, question 1 \(id q9\): the answer 'Spain'"
    ):
        read_squad(save("nested.json", nested(bad)))
    with pytest.raises(DataError, match=r"article 1, paragraph 1, question 1: str, not an object"):
        read_squad(save("nested.json", nested("q")))
    with pytest.raises(DataError, match=r"article 1, paragraph 1: no list 'qas'. Expected data / paragraphs / qas"):
        read_squad(save("nested.json", {"data": [{"paragraphs": [{"context": CONTEXT}]}]}))
    with pytest.raises(DataError, match=r"question 1: no 'context'|question 1.*'context'"):
        read_squad(save("nested.json", {"data": [{"paragraphs": [{"qas": [bad]}]}]}))


def test_files_that_cannot_be_read(save, tmp_path):
    with pytest.raises(DataError, match=r"task\.path=.*absent\.json: no such file"):
        read_squad(tmp_path / "absent.json")
    for content in ("", " \n"):
        with pytest.raises(DataError, match=r"empty\.json is empty"):
            read_squad(save("empty.json", content))
    for content in ({"data": []}, []):
        with pytest.raises(DataError, match=r"no question with an answer"):
            read_squad(save("nothing.json", content))
    with pytest.raises(DataError, match=r"bad\.json line 2: not JSON"):
        read_squad(save("bad.json", '{"data":\n oops}'))
    with pytest.raises(DataError, match=r"bad\.jsonl line 2: not JSON"):
        read_squad(save("bad.jsonl", json.dumps(ROW) + "\n{oops\n"))
    with pytest.raises(DataError, match=r"expected a list of records"):
        read_squad(save("number.json", "5"))
    (tmp_path / "latin.json").write_bytes(b'{"data": "\xe9"}')
    with pytest.raises(DataError, match=r"latin\.json is not UTF-8"):
        read_squad(tmp_path / "latin.json")


def test_mentions():
    assert mentions(fold("It was\nin  FRANCE then"), [fold("in France")])
    assert mentions(fold("Frances"), ["france"])  # long answers anywhere
    assert not mentions(fold("In 1308"), ["308"]) and mentions(fold("the 308."), ["308"])  # short ones as words
    assert not mentions("no, yes", ["yes", "no"])


def test_records_are_checked():
    with pytest.raises(ValueError, match=r"kind='riddle'"):
        QARecord("1", "q", ("a",), ("a",), kind="riddle")
    with pytest.raises(DataError, match=r"row 7: expected at least one answer"):
        QARecord("1", "q", (), ("a",), where="row 7")
    with pytest.raises(DataError, match=r"row 7: the answer 'a' is not one of its options"):
        QARecord("1", "q", ("a",), ("a",), kind="choice", options=("b", "c"), where="row 7")


def test_a_real_file(shared_data):
    records = read_squad(shared_data / "squad" / "xquad_en_dev.json")
    raw = json.loads((shared_data / "squad" / "xquad_en_dev.json").read_text(encoding="utf-8"))
    paragraphs = [p for article in raw["data"] for p in article["paragraphs"]]
    assert len(records) == sum(len(p["qas"]) for p in paragraphs) > 500
    starts = [(p["context"], q["answers"][0]) for p in paragraphs for q in p["qas"]]
    for record, (context, answer) in zip(records, starts):
        assert context[answer["answer_start"] :].startswith(record.answers[0])
        assert record.paragraphs == (context.strip(),)
