import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zoo.data import DataError, Document, TextSource
from zoo.data.documents import SPLITS, assign_splits, digest_documents


def splits(source):
    return {split: list(source.documents(split)) for split in SPLITS}


def many(n, **extra):
    return [{"text": f"document number {number}", **extra} for number in range(n)]


def test_rows_are_divided_by_their_text(write):
    root = write(corpus_DOT_jsonl=many(2000))
    found = splits(TextSource(str(root / "corpus.jsonl")))
    shares = [len(found[split]) / 2000 for split in SPLITS]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    assert sum(len(documents) for documents in found.values()) == 2000
    assert found["train"][0].name.startswith("corpus.jsonl:")
    lines = [int(document.name.split(":")[1]) for document in found["train"]]
    assert lines == sorted(lines)


def test_a_document_keeps_its_split_when_others_come(write):
    small = splits(TextSource(str(write(a_DOT_jsonl=many(300)))))
    large = splits(TextSource(str(write(a_DOT_jsonl=many(400)))))
    for split in SPLITS:
        assert {d.text for d in small[split]} <= {d.text for d in large[split]}


@pytest.mark.parametrize("n", [3, 5, 20])
def test_few_documents_still_give_every_split(write, n):
    found = splits(TextSource(str(write(a_DOT_jsonl=many(n)))))
    assert all(found.values())
    assert len({d.text for documents in found.values() for d in documents}) == n


def test_every_number_of_documents_is_divided_with_none_lost():
    for n in range(3, 60):
        hashes = np.random.default_rng(n).integers(0, 2**63, n, dtype=np.uint64) * np.uint64(2)
        assert set(assign_splits(hashes, (0.9, 0.05, 0.05)).tolist()) == {0, 1, 2}


def book(title, lines=400):
    return "".join(f"{title}, line {number} of a book.\n" for number in range(lines))


@pytest.mark.parametrize("other", ["Two", "One"])
def test_two_books_give_every_split_some_of_each(write, other):
    """Where one has the text of the other, nothing of the held-out text is trained on either."""
    texts = {"one.txt": book("One"), "two.txt": book(other)}
    root = write(one_DOT_txt=texts["one.txt"], two_DOT_txt=texts["two.txt"])
    found = splits(TextSource(str(root)))
    for split in SPLITS:
        assert [d.name for d in found[split]] == ["one.txt", "two.txt"]
    for number, text in enumerate(texts.values()):
        pieces = [found[split][number].text for split in SPLITS]
        assert "".join(pieces) == text and all(piece.endswith("\n") for piece in pieces)
        assert [len(piece) / len(text) for piece in pieces] == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    lines = {split: {line for d in documents for line in d.text.splitlines()} for split, documents in found.items()}
    assert not lines["train"] & (lines["validation"] | lines["test"])
    assert splits(TextSource(str(root))) == found
    assert TextSource(str(root)).describe()["splits"] == "cut from the documents, 90/5/5"


def test_two_documents_too_short_to_be_cut_are_train_and_validation(write):
    found = splits(TextSource(str(write(a_DOT_txt="A", b_DOT_txt="B"))))
    assert [len(documents) for documents in found.values()] == [1, 1, 0]


def test_two_of_two_fractions_are_divided_by_document(write):
    found = splits(TextSource(str(write(a_DOT_txt=book("A"), b_DOT_txt=book("B"))), split_fractions=(0.9, 0.1, 0)))
    assert [len(documents) for documents in found.values()] == [1, 1, 0]


@pytest.mark.parametrize("files", [{"a_DOT_txt": "ab"}, {"a_DOT_txt": "ab", "b_DOT_txt": "ab"}])
def test_one_text_that_is_too_short(write, files):
    with pytest.raises(DataError, match=r"corpus has one text of 2 characters, too few to cut train and validation"):
        list(TextSource(str(write(**files))).documents("train"))


def test_borders_of_one_long_text_stay_where_they_were():
    """Runs of one file continue on the same text: the slack of a border is a fortieth of the text at 90/5/5."""
    assert all(min(n // 40, (round(n * 0.95) - round(n * 0.9)) // 2) == n // 40 for n in range(100_000))


def test_one_file_is_cut_at_paragraphs(write):
    text = "".join(f"Paragraph {number}\nhas two lines.\n\n" for number in range(400))
    found = splits(TextSource(str(write(book_DOT_txt=text) / "book.txt")))
    pieces = [found[split][0].text for split in SPLITS]
    assert "".join(pieces) == text
    assert all(piece.startswith("Paragraph") for piece in pieces)
    assert [len(piece) / len(text) for piece in pieces] == pytest.approx([0.9, 0.05, 0.05], abs=0.02)


def test_two_fractions_may_be_all(write):
    source = TextSource(str(write(book_DOT_txt="line\n" * 1000)), split_fractions=(0.5, 0.5, 0))
    assert [len(source_split) for source_split in splits(source).values()] == [1, 1, 0]
    with pytest.raises(DataError, match=r"sum to 1"):
        list(TextSource(source.path, split_fractions=(0.5, 0.2, 0.2)).documents("train"))


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev"])
def test_folders_named_after_splits(write, validation):
    root = write(train__a_DOT_txt="A", train__deep__b_DOT_md="B", **{f"{validation}__c_DOT_txt": "C"})
    source = TextSource(str(root))
    assert [(d.name, d.text) for d in source.documents("train")] == [("train/a.txt", "A"), ("train/deep/b.md", "B")]
    assert [d.text for d in source.documents("validation")] == ["C"]
    assert TextSource(str(root)).describe()["splits"].endswith("; test: none")
    with pytest.raises(DataError, match=r"none for 'test'.*add a folder named test/"):
        list(source.documents("test"))


def test_globs_and_hidden_files(write):
    root = write(a_DOT_txt="A", sub__b_DOT_txt="B", c_DOT_md="C", _DOT_git__x_DOT_txt="hidden", skip_DOT_py="P")
    assert sum(len(d) for d in splits(TextSource(str(root))).values()) == 3
    found = splits(TextSource(str(root / "**" / "*.txt")))
    assert {d.name for documents in found.values() for d in documents} == {"a.txt", "sub/b.txt"}


def test_text_is_not_altered_except_for_the_mark(write):
    body = "one\r\ntwo\rthree\u2028four \t \x00 é e\u0301\n\n"
    rows = [{"text": body}]
    root = write(train__a_DOT_txt=b"\xef\xbb\xbf" + body.encode(), train__b_DOT_jsonl=rows, dev__c_DOT_jsonl=rows)
    assert [d.text for d in TextSource(str(root)).documents("train")] == [body, body]


def test_fingerprint_follows_the_documents_and_nothing_else(write, tmp_path):
    root = write(a_DOT_jsonl=many(50, extra=1))
    before = TextSource(str(root)).fingerprint("train")
    write(a_DOT_jsonl=many(50, extra=2))
    assert TextSource(str(root)).fingerprint("train") == before
    root.rename(tmp_path / "moved")
    assert TextSource(str(tmp_path / "moved")).fingerprint("train") == before
    rows = many(50, extra=2)
    rows[7]["text"] += "."
    changed = TextSource(str(write(a_DOT_jsonl=rows)))
    assert [changed.fingerprint(split) for split in SPLITS] != [
        TextSource(str(tmp_path / "moved")).fingerprint(split) for split in SPLITS
    ]


def test_borders_between_documents_count():
    lists = [Document("n", "ab"), Document("", "")], [Document("na", "b"), Document("", "")], [Document("n", "ab")]
    assert len({digest_documents(documents) for documents in lists}) == 3


def test_parquet(tmp_path):
    table = pa.table({"id": range(3000), "body": [f"row {number}" for number in range(2998)] + ["", None]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=100)
    found = splits(TextSource(str(tmp_path), text_column="body"))
    assert sum(len(documents) for documents in found.values()) == 2998
    assert all(d.text == f"row {int(d.name.split(':')[1]) - 1}" for d in found["validation"])
    with pytest.raises(DataError, match=r"no column 'text'; columns are id, body"):
        list(TextSource(str(tmp_path)).documents("train"))
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"rows.parquet is not a readable Parquet file"):
        list(TextSource(str(tmp_path), text_column="body").documents("train"))


@pytest.mark.parametrize("path", [None, ""])
def test_no_path(path):
    with pytest.raises(DataError, match=r"data.path is not set"):
        list(TextSource(path).documents("train"))


def test_missing_and_unsupported(write):
    with pytest.raises(DataError, match=r"data.path=/nowhere/x.txt: no such file"):
        list(TextSource("/nowhere/x.txt").documents("train"))
    root = write(a_DOT_csv="1,2", b_DOT_py="", Makefile="")
    with pytest.raises(DataError, match=r"\.jsonl, \.parquet; .*\.zst\); found \(no extension\), \.csv, \.py"):
        list(TextSource(str(root)).documents("train"))
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"found no files at all"):
        list(TextSource(str(root / "empty")).documents("train"))
    with pytest.raises(DataError, match=r"hold no text"):
        list(TextSource(str(write(blank__a_DOT_txt="") / "blank")).documents("train"))


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_not_utf8_names_the_file_and_the_byte(write, mark):
    root = write(a_DOT_txt=mark + b"caf\xe9 au lait")
    with pytest.raises(DataError, match=rf"a.txt is not UTF-8: byte 0xe9 at offset {3 + len(mark)};"):
        list(TextSource(str(root)).documents("train"))


def test_not_utf8_in_the_middle_of_jsonl(write):
    first = b'{"text": "fine"}\n'
    root = write(a_DOT_jsonl=first + b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match=rf"byte 0xff at offset {len(first) + 10};"):
        list(TextSource(str(root)).documents("train"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', r"a.jsonl, line 3: not JSON \(.*column 10"),
        ('["text"]', r"line 3: a JSON list, expected an object"),
        ('{"body": "b", "id": 1}', r"line 3: no column 'text'; columns are body, id: .*text_column"),
        ('{"text": 5}', r"line 3: field 'text' holds int, expected a string"),
        ('{"text": "x\\ud800"}', r"line 3: half of a surrogate pair at character 1"),
    ],
)
def test_bad_lines(write, line, message):
    root = write(a_DOT_jsonl='{"text": "one"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        list(TextSource(str(root)).documents("train"))


def test_gutenberg(shared_data):
    if not (shared_data / "gutenberg").is_dir():
        pytest.skip("real text: no gutenberg in the folder of shared data")
    found = splits(TextSource(str(shared_data / "gutenberg")))
    assert all(found.values())
    names = [document.name for documents in found.values() for document in documents]
    assert len(names) == len(set(names)) and all(name.split("/")[0] in SPLITS for name in names)
    assert [document.name for document in found["train"]] == sorted(document.name for document in found["train"])
