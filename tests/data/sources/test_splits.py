"""Official splits by name, what is left out, compressed files and links."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zoo.data import DataError, TextSource
from zoo.data.documents import SPLITS, escape_name, unescape_name
from zoo.data.sources.splits import recognize_splits
from zoo.runs.corpus import LocalText, skipped_notes

TRAIN, VALIDATION, TEST = ("train text\n", "validation text\n", "test text\n")


def splits(path):
    source = TextSource(str(path))
    return {split: [d.text for d in source.documents(split)] for split in SPLITS}


@pytest.mark.parametrize(
    "names",
    [
        ("train.txt", "validation.txt", "test.txt"),
        ("wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"),
        ("x_train.md", "x_dev.md", "x_test.md"),
        ("TRAIN.txt", "Dev.txt", "Test.txt"),
        ("train-v1.1.txt", "dev-v1.1.txt", "test-v1.1.txt"),
        ("c4-train.00000-of-01024.txt", "c4-validation.00000-of-00008.txt", "c4-eval.00000-of-00008.txt"),
        ("train-00000-of-00001-a09b74b3ef9c3b56.txt", "val-00000-of-00001-7.txt", "test-00000-of-00001.txt"),
        ("en/training/a.txt", "en/valid/a.txt", "en/testing/a.txt"),
        ("train/the_test.txt", "validation/the_train.txt", "test/dev.txt"),
        ("set-train/a.txt", "set-val/a.txt", "set-test/a.txt"),
    ],
)
def test_official_splits_are_kept(tmp_path, names):
    for name, text in zip(names, (TRAIN, VALIDATION, TEST)):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert splits(tmp_path / "corpus") == {"train": [TRAIN], "validation": [VALIDATION], "test": [TEST]}
    assert splits(tmp_path / "corpus" / "**" / "*.*") == splits(tmp_path / "corpus")
    line = TextSource(str(tmp_path / "corpus")).describe()["splits"]
    assert line == "; ".join(f"{split}: {name}" for split, name in zip(SPLITS, names))
    assert [d.text for d in LocalText(str(tmp_path / "corpus")).documents("test")] == [TEST]


def test_shards_of_the_hub_with_a_readme(tmp_path):
    folder = tmp_path / "wikitext-2-v1"
    folder.mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        pq.write_table(pa.table({"text": [name]}), folder / f"{name}.parquet")
    (tmp_path / "README.md").write_text("about it")
    found = TextSource(str(tmp_path))
    assert [d.text for d in found.documents("train")] == ["train-00000-of-00002", "train-00001-of-00002"]
    assert [d.text for d in found.documents("validation")] == ["validation-00000-of-00001"]
    assert found.describe() == {
        "splits": "train: 2 files; validation: wikitext-2-v1/validation-00000-of-00001.parquet; test: none",
        "skipped": "1 file not read: README.md (of no split)",
    }


def test_validation_is_cut_from_train_where_there_is_none(write):
    rows = [{"text": f"row {number}"} for number in range(400)]
    source = TextSource(str(write(train_DOT_jsonl=rows, test_DOT_txt=TEST)))
    found = {split: [d.text for d in source.documents(split)] for split in SPLITS}
    assert found["test"] == [TEST] and not set(found["train"]) & set(found["validation"])
    assert sorted(found["train"] + found["validation"]) == sorted(row["text"] for row in rows)
    assert len(found["validation"]) == pytest.approx(20, abs=12)
    line = "train: train.jsonl; test: test.txt; validation: cut from train, 95/5"
    assert source.describe()["splits"] == line


@pytest.mark.parametrize("titles", [["the_test"], ["the_test", "night train"], ["test", "dev"], ["train"]])
def test_titles_among_many_books_are_no_splits(tmp_path, titles):
    for name in [*titles, *(f"book {number}" for number in range(40))]:
        (tmp_path / f"{name}.txt").write_text(f"{name}\n" * 10)
    source = TextSource(str(tmp_path))
    found = {split: [d.name for d in source.documents(split)] for split in SPLITS}
    assert sum(map(len, found.values())) == 40 + len(titles) and all(found.values())
    told = "are titles" in source.describe()["splits"]
    assert told == (titles == ["the_test", "night train"])


def test_a_name_with_two_splits_is_of_none():
    names = {"train.txt": "train", "test.txt": "test", "train_test_notes.txt": "train_test_notes"}
    assert recognize_splits(names) == {"train.txt": "train", "test.txt": "test"}
    assert recognize_splits({"trainer.txt": "trainer", "latest.txt": "latest", "devil.txt": "devil"}) == {}


def test_compressed_files(tmp_path, suffix, pack):
    rows = '{"text": "row 1"}\n{"text": "row 2 é"}\n'.encode()
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(suffix, rows[:30]) + pack(suffix, rows[30:]))
    (tmp_path / f"B.TXT{suffix.upper()}").write_bytes(pack(suffix, b"\xef\xbb\xbfone\r\ntwo\x00" + b"x" * 100_000))
    source = LocalText(str(tmp_path))
    found = {d.name: d.text for d in source.documents("all")}
    assert found == {
        f"B.TXT{suffix.upper()}": "one\r\ntwo\x00" + "x" * 100_000,
        f"a.jsonl{suffix}:1": "row 1",
        f"a.jsonl{suffix}:2": "row 2 é",
    }
    assert "skipped" not in source.describe()


@pytest.mark.parametrize("break_it", [lambda raw: raw[: len(raw) // 2], lambda raw: b"not at all compressed"])
def test_broken_compressed_files(tmp_path, suffix, pack, break_it):
    packed = pack(suffix, os.urandom(3000).hex().encode())
    (tmp_path / f"a.txt{suffix}").write_bytes(break_it(packed))
    with pytest.raises(DataError, match=rf"a\.txt{suffix} cannot be decompressed \(.*\): replace or remove it"):
        list(TextSource(str(tmp_path)).documents("train"))


def test_compressed_splits(tmp_path, pack):
    for name, text in zip(("train.txt.gz", "valid.txt.xz", "test.txt.zst"), (TRAIN, VALIDATION, TEST)):
        (tmp_path / name).write_bytes(pack(os.path.splitext(name)[1], text.encode()))
    assert splits(tmp_path) == {"train": [TRAIN], "validation": [VALIDATION], "test": [TEST]}


def test_what_is_not_read_is_named(tmp_path):
    for name in ("a.txt", "b.csv", "c.csv", "d.csv", "e.csv", "f.parquet.gz", "g", "h.tar.gz", "i.json"):
        (tmp_path / name).write_text("some text\n" * 20)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".hidden.csv").touch()
    os.mkfifo(tmp_path / "pipe.txt")
    line = TextSource(str(tmp_path)).describe()["skipped"]
    assert line == (
        "11 files not read: broken.txt (broken link); pipe.txt (no regular file); b.csv, c.csv, d.csv and 1 more "
        "(unknown suffix .csv); f.parquet.gz (unknown suffix .parquet.gz); g (no suffix); "
        "h.tar.gz (unknown suffix .tar.gz); i.json (unknown suffix .json); empty.txt (empty)"
    )


def test_links_are_followed_and_loops_end(tmp_path):
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "b.txt").write_text("B")
    root = tmp_path / "corpus"
    (root / "z").mkdir(parents=True)
    (root / "a.txt").write_text("A")
    (root / "z" / "c.txt").write_text("C")
    (root / "linked").symlink_to(outside)
    (root / "again").symlink_to(root / "z")
    (root / "z" / "loop").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (outside / "deep" / "d.txt").symlink_to(root / "a.txt")
    names = [d.name for d in LocalText(str(root)).documents("all")]
    assert names == ["a.txt", "linked/deep/b.txt", "linked/deep/d.txt", "z/c.txt"]
    for name, text in (("train", TRAIN), ("test", TEST)):
        (tmp_path / f"other-{name}").mkdir()
        (tmp_path / f"other-{name}" / "x.txt").write_text(text * 40)
        (root / "z" / name).symlink_to(tmp_path / f"other-{name}")
    assert [d.name for d in TextSource(str(root)).documents("test")] == ["z/test/x.txt"]


@pytest.mark.parametrize(
    "name", [b"caf\xe9.txt", b"plain.txt", "café\\.txt".encode(), rb"caf\xe9.txt", b"\xff\\x5c\xfe.txt"]
)
def test_names_that_are_not_utf8_are_escaped_and_come_back(tmp_path, name):
    (tmp_path / os.fsdecode(name)).write_text("text\n" * 100)
    (document,) = LocalText(str(tmp_path)).documents("all")
    assert document.name.encode() and os.fsencode(unescape_name(document.name)) == name
    assert (document.name == os.fsdecode(name)) == (name in (b"plain.txt", "café\\.txt".encode()))
    assert LocalText(os.path.join(tmp_path, os.fsdecode(name))).name == document.name == escape_name(os.fsdecode(name))


def test_one_huge_line_of_json(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "' + "word " * 2_000_000 + '"}')
    found = splits(tmp_path)
    assert [len(found[split][0]) for split in SPLITS] == [9_000_000, 500_000, 500_000]


def test_files_beside_an_evaluated_text_are_named_in_its_warnings(tmp_path):
    (tmp_path / "a.txt").write_text("text\n")
    (tmp_path / "b.csv").write_text("1")
    assert skipped_notes(LocalText(str(tmp_path))) == ("Of task.path, 1 file not read: b.csv (unknown suffix .csv).",)
    assert skipped_notes(LocalText(str(tmp_path / "a.txt"))) == ()


def test_the_wikitext_folder_as_plain_text(shared_data):
    folder = shared_data / "hub" / "wikitext"
    if not folder.is_dir():
        pytest.skip("real text: no hub/wikitext in the folder of shared data")
    source = TextSource(str(folder))
    for split in ("train", "validation"):
        (file,) = folder.glob(f"*/{split}-*")
        rows = [row for row in pq.read_table(file)["text"].to_pylist() if row]
        assert [d.text for d in source.documents(split)] == rows
