import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zoo.data import DataError
from zoo.data.qa import PRESETS, QASet, load_preset, load_set, presets
from zoo.data.qa.adapters import completion, hotpotqa
from zoo.data.recall.base import Place

STORY = "Mary went home. She sat down."
SUMMARY = {"text": "Ann leaves town.", "tokens": ["Ann"], "url": "u", "title": "T"}
BOOK = {"id": "d", "kind": "book", "url": "u", "file_size": 1, "word_count": 5, "start": "s", "end": "e"}

# One row of each data set, with the columns it has on the Hub, and the record that it is.
ROWS = {
    "squad": {
        "id": "s1",
        "title": "Normans",
        "context": "Normandy is in France.",
        "question": "Where is Normandy?",
        "answers": {"text": ["France", "in France"], "answer_start": [15, 12]},
    },
    "hotpotqa": {
        "id": "h1",
        "question": "Who owns the lamp?",
        "answer": "Ann",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": {"title": ["Lamp", "Ann", "Lamp"], "sent_id": [0, 0, 1]},
        "context": {
            "title": ["Boat", "Lamp", "Ann"],
            "sentences": [["A boat.", " It floats."], ["A lamp.", " Of the owner."], ["Ann owns it."]],
        },
    },
    "narrativeqa": {
        "document": {**BOOK, "summary": SUMMARY, "text": "The whole book."},
        "question": {"text": "Who leaves?", "tokens": ["Who"]},
        "answers": [{"text": "Ann", "tokens": ["Ann"]}, {"text": "Ann does", "tokens": ["Ann"]}],
    },
    "quality": {
        "article": "A long article.\n\nOf two paragraphs.",
        "question": "What is it?",
        "options": ["A poem", "An article", "A lamp", "A boat"],
        "answer": 1,
        "hard": False,
    },
    "longbench": {
        "input": "Who is Ann?",
        "context": "Passage 1:\nAnn is a baker.\n\nPassage 2:\nA boat.",
        "answers": ["a baker", "baker"],
        "length": 9,
        "dataset": "hotpotqa",
        "language": "en",
        "all_classes": None,
        "_id": "b81c",
    },
    "babilong": {"input": STORY, "question": "Where is Mary? ", "target": "home"},
    "swde": {"text": "Name: Ann\nRank: 170\n\nHeight in cm:", "value": " 170 ", "doc_id": "d"},
    "squad_completion": {"text": "The lamp is green. It is old. The lamp is", "value": "green", "title": "Lamp"},
}
ROWS |= {"squad_v2": ROWS["squad"], "narrativeqa_full": ROWS["narrativeqa"], "fda": ROWS["swde"]}
EXPECTED = {
    "squad": ("s1", "Where is Normandy?", ("France", "in France"), ("Normandy is in France.",), (), "question", ()),
    "hotpotqa": (
        "h1",
        "Who owns the lamp?",
        ("Ann",),
        ("Lamp: A lamp. Of the owner.", "Ann: Ann owns it."),
        ("Boat: A boat. It floats.",),
        "question",
        (),
    ),
    "narrativeqa": ("validation-0", "Who leaves?", ("Ann", "Ann does"), ("Ann leaves town.",), (), "question", ()),
    "narrativeqa_full": ("validation-0", "Who leaves?", ("Ann", "Ann does"), ("The whole book.",), (), "question", ()),
    "quality": (
        "validation-0",
        "What is it?",
        ("An article",),
        ("A long article.\n\nOf two paragraphs.",),
        (),
        "choice",
        ("A poem", "An article", "A lamp", "A boat"),
    ),
    "longbench": (
        "b81c",
        "Who is Ann?",
        ("a baker", "baker"),
        ("Passage 1:\nAnn is a baker.\n\nPassage 2:\nA boat.",),
        (),
        "question",
        (),
    ),
    "babilong": ("qa1-0", "Where is Mary?", ("home",), (STORY,), (), "question", ()),
    "swde": ("validation-0", "Height in cm:", ("170",), ("Name: Ann\nRank: 170\n\n",), (), "completion", ()),
    "squad_completion": (
        "validation-0",
        " The lamp is",
        ("green",),
        ("The lamp is green. It is old.",),
        (),
        "completion",
        (),
    ),
}
EXPECTED |= {"squad_v2": EXPECTED["squad"], "fda": EXPECTED["swde"]}


def plain(record):
    return (
        record.id,
        record.question,
        record.answers,
        record.paragraphs,
        record.distractors,
        record.kind,
        record.options,
    )


def save(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def load(tmp_path):
    """Loads a preset from files given as {name: rows} in a folder."""

    def load(preset, files, readme=None, **options):
        folder = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
        for name, rows in files.items():
            save(folder / name, rows)
        if readme is not None:
            (folder / "README.md").write_text(readme, encoding="utf-8")
        return load_preset(preset, folder, cache_dir=str(tmp_path / "cache"), **options)

    return load


def test_the_table_below_has_every_preset():
    assert set(ROWS) == set(EXPECTED) == set(PRESETS)
    assert all(preset.license for preset in PRESETS.values())


@pytest.mark.parametrize("ending", ["-00000-of-00001.parquet", ".jsonl", ".json"])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_from_a_local_folder(load, name, ending):
    split = PRESETS[name].split
    (record,) = load(name, {f"data/{split}{ending}": [ROWS[name]]})
    assert plain(record) == EXPECTED[name]
    assert record.where.endswith(f"split {split} row 0")


@pytest.mark.parametrize("name", ["squad", "babilong"])
@pytest.mark.parametrize("json_lines", [True, False])
def test_compressed_files_of_a_preset(tmp_path, name, json_lines, suffix, pack):
    ending, text = (".jsonl", json.dumps(ROWS[name]) + "\n") if json_lines else (".json", json.dumps([ROWS[name]]))
    file = tmp_path / "set" / "data" / f"{PRESETS[name].split}{ending}{suffix}"
    file.parent.mkdir(parents=True)
    file.write_bytes(pack(suffix, text.encode()))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    (record,) = load_preset(name, tmp_path / "link", cache_dir=str(tmp_path / "cache"))
    assert plain(record) == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "file", "config", "split"),
    [
        ("squad", "validation.parquet", None, None),
        ("squad", "plain_text/validation-00000-of-00001.parquet", None, None),  # as the Hub's own copy has it
        ("hotpotqa", "distractor/validation-00000-of-00001.parquet", None, None),
        ("hotpotqa", "distractor/validation/0000.parquet", None, None),  # as the Hub converts it
        ("quality", "data/validation-00000-of-00001-77baeb9538209706.parquet", None, None),
        ("longbench", "hotpotqa.jsonl", "hotpotqa", None),  # the original archive
        ("longbench", "data/hotpotqa.jsonl", "hotpotqa", None),
        ("longbench", "hotpotqa/test-00000-of-00001.parquet", "hotpotqa", None),
        ("babilong", "data/qa2/4k.json", "4k", "qa2"),
        ("babilong", "4k/qa2-00000-of-00001.parquet", "4k", "qa2"),
    ],
)
def test_layouts_of_the_hub(load, name, file, config, split):
    (record,) = load(name, {file: [ROWS[name]]}, config=config, split=split)
    assert plain(record)[1:] == EXPECTED[name][1:]


def test_a_copy_with_a_list_of_configs(load):
    readme = "---\nconfigs:\n"
    for config in ("1k", "2k"):
        files = "".join(f"  - split: qa{n}\n    path: {config}/qa{n}*\n" for n in (1, 2))
        readme += f"- config_name: {config}\n  data_files:\n{files}"
    rows = {
        f"{config}/qa{n}.jsonl": [ROWS["babilong"] | {"question": f"{config} {n}?"}]
        for config in ("1k", "2k")
        for n in (1, 2)
    }
    (record,) = load("babilong", rows, readme + "---\n", config="2k", split="qa2")
    assert record.question == "2k 2?"
    (record,) = load("babilong", rows, readme + "---\n")
    assert record.question == "1k 1?"


def test_hotpotqa_as_its_authors_published_it():
    row = {
        "_id": "h1",
        "question": "Who owns the lamp?",
        "answer": "Ann",
        "supporting_facts": [["Lamp", 0], ["Ann", 0]],
        "context": [
            ["Boat", ["A boat.", " It floats."]],
            ["Lamp", ["A lamp.", " Of the owner."]],
            ["Ann", ["Ann owns it.", ""]],
        ],
    }
    assert plain(hotpotqa(row, "row", "0")) == EXPECTED["hotpotqa"]


@pytest.mark.parametrize(
    ("text", "context", "asked"),
    [
        ("A. B.\nKey:", "A. B.\n", "Key:"),
        ("Title\nOne sentence. Another one. It has", "Title\nOne sentence. Another one.", " It has"),
        ('He said "no." Then he', 'He said "no."', " Then he"),
        (" A.\n\n Key: \n", "A.\n\n", " Key:"),
    ],
)
def test_a_completion_is_cut_before_its_last_line_or_sentence(text, context, asked):
    record = completion({"text": text, "value": "A"}, "row", "0")
    assert (record.paragraphs, record.question) == ((context,), asked)
    assert "".join(record.paragraphs) + record.question == text.strip()


@pytest.mark.parametrize(("answer", "text"), [(0, "A poem"), (1, "A poem"), (2, "A lamp"), (3, "A boat")])
def test_an_answer_is_counted_among_all_options_though_some_are_alike(load, answer, text):
    row = ROWS["quality"] | {"options": ["A poem", "A poem", "A lamp", "A boat"], "answer": answer}
    (record,) = load("quality", {"data/validation.jsonl": [row]})
    assert record.answers == (text,) and record.options == ("A poem", "A lamp", "A boat")


def test_closed_answers_become_options(load):
    rows = [ROWS["babilong"] | {"target": target} for target in ("home", "garden", "home", "kitchen")]
    records = load("babilong", {"data/qa1.jsonl": rows})
    assert {record.kind for record in records} == {"choice"}
    assert {record.options for record in records} == {("garden", "home", "kitchen")}
    open_ended = [ROWS["babilong"] | {"target": f"word {n}"} for n in range(40)]
    assert {record.kind for record in load("babilong", {"data/qa1.jsonl": open_ended})} == {"question"}


def test_the_head_of_a_set_and_rows_without_an_answer(load):
    rows = [
        ROWS["squad"] | {"id": str(n), "answers": {"text": ["France"] * (n % 2), "answer_start": []}} for n in range(9)
    ]
    assert [r.id for r in load("squad_v2", {"data/validation.jsonl": rows})] == ["1", "3", "5", "7"]
    assert [r.id for r in load("squad_v2", {"data/validation.jsonl": rows}, max_records=2)] == ["1", "3"]
    with pytest.raises(DataError, match=r"task\.max_records=0: expected a whole number >= 1"):
        load("squad", {"data/validation.jsonl": rows}, max_records=0)
    with pytest.raises(DataError, match=r"no question with an answer in split 'validation'\. Rows without .*: 1\."):
        load("squad_v2", {"data/validation.jsonl": rows[:1]})


def test_a_book_is_kept_once(load):
    first, second = load("narrativeqa_full", {"data/validation.jsonl": [ROWS["narrativeqa"]] * 2})
    assert first.paragraphs[0] is second.paragraphs[0] and first.id != second.id


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("squad", {"answers": {"text": ["Spain"], "answer_start": [0]}}, r"the answer 'Spain' is not in its context"),
        ("squad", {"question": ""}, r"'question' is blank"),
        ("hotpotqa", {"supporting_facts": "Lamp"}, r"'supporting_facts' is not a list of title, sent_id"),
        ("hotpotqa", {"context": {"title": ["a", "b"], "sentences": [["A."]]}}, r"'context' is not a list of title"),
        ("hotpotqa", {"context": {"title": ["a"], "sentences": ["A."]}}, r"sentences of 'a' are str"),
        ("narrativeqa", {"document": "text"}, r"'document' is str, expected an object"),
        ("narrativeqa", {"answers": []}, r"'answers' is not a list of text"),
        ("quality", {"answer": 4}, r"'answer' is 4, expected the index of one of 4 options"),
        ("quality", {"answer": "A"}, r"'answer' is 'A'"),
        ("longbench", {"answers": []}, r"'answers' is list, expected a list with at least one text"),
        ("longbench", {"context": None}, r"no 'context'"),
        ("babilong", {"target": " "}, r"'target' is blank"),
        ("swde", {"value": 5}, r"'value' is int, not text"),
    ],
)
def test_a_row_of_another_layout_is_named(load, name, change, message):
    split = PRESETS[name].split
    with pytest.raises(DataError, match=rf"split {split} row 0: .*{message}|split {split} row 0: {message}"):
        load(name, {f"data/{split}.jsonl": [ROWS[name] | change]})


@pytest.mark.parametrize(
    ("name", "change", "note"),
    [
        ("squad_v2", {"answers": {"text": [], "answer_start": []}}, "without an answer"),
        ("hotpotqa", {"supporting_facts": {"title": ["Lamp", "Gate"], "sent_id": [0, 0]}}, "without all titles"),
        ("swde", {"text": "Only this"}, "whose 'text' is a single sentence"),
        ("swde", {"value": "171"}, "whose 'value' is not in 'text'"),
        ("swde", {"text": "Name: Ann\nRank 170:"}, "whose 'value' is not in 'text'"),  # but in what is asked
    ],
)
def test_a_row_whose_text_does_not_answer_is_left_out_and_counted(tmp_path, name, change, note):
    rows = [ROWS[name] | change, ROWS[name], ROWS[name] | change]
    rows = [row | ({"id": str(number)} if "id" in row else {}) for number, row in enumerate(rows)]
    save(tmp_path / "data" / f"{PRESETS[name].split}.jsonl", rows)
    questions = load_set(tmp_path, name, cache_dir=str(tmp_path / "cache"))
    assert questions.count == 1
    (told,) = questions.notes
    assert told.startswith(f"Rows {note}") and told.endswith(", left out: 2.")


@pytest.mark.parametrize("name", ["a [1] #ü%41", "it's * ? {x}::y", "caf\udce9"])
def test_a_folder_of_a_preset_may_have_any_name(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(tmp_path / name / "data" / "validation.jsonl", [ROWS["squad"]])
    cache = str(tmp_path / name / "cache")
    assert len(load_preset("squad", tmp_path / name, cache_dir=cache)) == 1
    save(tmp_path / name / "own" / "data" / "odd [1].jsonl", [ROWS["squad"]] * 1)
    assert len(load_preset("squad", tmp_path / name / "own", split="odd [1]", cache_dir=cache)) == 1


def test_a_streamed_set_has_a_limit_of_its_own(load, tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "STREAMED", 2)
    rows = {"data/validation.jsonl": [ROWS["narrativeqa"]] * 4}
    assert len(load("narrativeqa", rows)) == 2 and len(load("narrativeqa", rows, max_records=3)) == 3
    save(tmp_path / "books" / "data" / "validation.jsonl", [ROWS["narrativeqa"]] * 4)
    found = load_set(tmp_path / "books", "narrativeqa", cache_dir=str(tmp_path / "cache"))
    assert found.notes == ("Only the first 2 questions of narrativeqa were read: set task.max_records for more.",)


@pytest.mark.parametrize("most", [0, -1, 1.5])
def test_too_few_records_are_refused_wherever_they_come_from(tmp_path, most):
    save(tmp_path / "own.jsonl", [ROWS["squad"], ROWS["squad"] | {"id": "s2"}])
    for options in ({"path": tmp_path / "own.jsonl"}, {"preset": "squad"}):
        with pytest.raises(DataError, match=rf"task\.max_records={most}: expected a whole number >= 1, or null"):
            load_set(**options, max_records=most)


def test_wrong_names_and_folders(load, tmp_path):
    with pytest.raises(DataError, match=r"task\.preset='trivia': expected one of squad, .*squad_completion"):
        load_preset("trivia")
    with pytest.raises(
        DataError, match=r"task\.config='dureader': the preset longbench has multifieldqa_en, narrativeqa"
    ):
        load_preset("longbench", config="dureader")
    rows = {"data/train.jsonl": [ROWS["squad"]]}
    with pytest.raises(
        DataError, match=r"task\.path=.* has no split 'validation'; it has train: choose .* task\.split"
    ):
        load("squad", rows)
    with pytest.raises(
        DataError, match=r"task\.path=.*absent: expected a folder with the layout of .* rajpurkar/squad"
    ):
        load_preset("squad", tmp_path / "absent")
    with pytest.raises(DataError, match=r"task\.path=.*could not be read"):
        load("squad", {"data/other.xyz": []})
    (tmp_path / "broken" / "data").mkdir(parents=True)
    (tmp_path / "broken" / "data" / "validation.jsonl").write_text("{oops")
    with pytest.raises(DataError, match=r"task\.path=.*broken could not be read"):
        load_preset("squad", tmp_path / "broken", cache_dir=str(tmp_path / "cache"))


def test_the_split_of_another_config_is_never_read(load):
    with pytest.raises(DataError):
        load("babilong", {"1k/qa2.jsonl": [ROWS["babilong"]]}, config="1k", split="qa1")


@pytest.mark.parametrize("name", ["squad", "narrativeqa", "longbench"])
def test_an_unreachable_hub(name, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"could not be (loaded|read).*point task\.path at a local folder"):
        load_preset(name, cache_dir=str(tmp_path))


def test_a_set_for_the_command_line(load, tmp_path, encoder):
    save(tmp_path / "own.jsonl", [ROWS["squad"], ROWS["squad"] | {"id": "s2"}])
    questions = load_set(tmp_path / "own.jsonl")
    assert isinstance(questions, QASet) and questions.name == "own" and questions.count == 2
    assert questions.fill and questions.truncate == "error"
    assert load_set(tmp_path / "own.jsonl", max_records=1).count == 1
    cache = str(tmp_path / "cache")
    save(tmp_path / "hub" / "data" / "validation.jsonl", [ROWS["squad"]])
    assert load_set(tmp_path / "hub", cache_dir=cache).name == "squad"
    save(tmp_path / "long" / "qasper.jsonl", [ROWS["longbench"]])
    documents = load_set(tmp_path / "long", "longbench", config="qasper", cache_dir=cache)
    assert documents.name == "longbench-qasper" and not documents.fill and documents.truncate == "middle"
    cut = documents.sample(Place(0, 40), encoder)
    assert len(cut) <= 40 and (len(cut) == 40) == (cut.truncated > 0)
    save(tmp_path / "babi" / "4k" / "qa3.jsonl", [ROWS["babilong"]])
    assert load_set(tmp_path / "babi", "babilong", "4k", "qa3", cache_dir=cache).name == "babilong-4k-qa3"
    with pytest.raises(DataError, match=r"nothing to ask: set task\.path .*or task\.preset to one of squad"):
        load_set()
    with pytest.raises(DataError, match=r"task\.path=.*gone\.json: no such file"):
        load_set(tmp_path / "gone.json")
