"""Fingerprints that are remembered, and what opening a known source reads."""

import json
import multiprocessing
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from zoo.data import Document, StdlibSource, TextSource, TokenStore, build_tokenizer, fingerprints
from zoo.data.documents import DataError, digest_documents
from zoo.data.fingerprints import Stamp, known_fingerprint
from zoo.data.store.store_files import FILES, write_meta
from zoo.data.store.store_writer import StoreWriter
from zoo.runs.corpus import LocalText


class Counting(TextSource):
    """Counts how often its text is read through."""

    reads = 0

    def fingerprint(self, split):
        type(self).reads += 1
        return super().fingerprint(split)


@pytest.fixture
def corpus(write):
    Counting.reads = 0
    return write(**{f"{name}_DOT_txt": f"{name} text\n" * 50 for name in "abc"})


@pytest.fixture
def settled(monkeypatch):
    """As if all files had been there for long: the clock is a minute ahead (times of an inode cannot be set)."""
    now = time.time_ns
    monkeypatch.setattr(fingerprints.time, "time_ns", lambda: now() + 60 * 10**9)


def known(root, cache, split="train"):
    return known_fingerprint(Counting(str(root)), split, cache)


@pytest.mark.usefixtures("settled")
def test_a_known_source_is_not_read_again(corpus, cache):
    first = known(corpus, cache)
    assert known(corpus, cache) == first == TextSource(str(corpus)).fingerprint("train") and Counting.reads == 1
    assert known(corpus, cache, "test") != first and Counting.reads == 2
    (corpus / "a.txt").chmod(0o600)  # another time of change, the same text
    assert known(corpus, cache) == first and Counting.reads == 3


def rewrite(path):
    path.write_text("x text\n" * 50)


def rewrite_with_the_old_time(path):
    before = path.stat()
    rewrite(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path):
    other = path.with_name("other")
    rewrite(other)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def add(path):
    path.with_name("d.txt").write_text("one more\n")


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", [rewrite, rewrite_with_the_old_time, replace, add, os.remove])
def test_every_change_is_seen(corpus, cache, change):
    before = [known(corpus, cache, split) for split in ("train", "validation", "test")]
    change(corpus / "a.txt")
    after = [known(corpus, cache, split) for split in ("train", "validation", "test")]
    assert after != before
    assert after == [TextSource(str(corpus)).fingerprint(split) for split in ("train", "validation", "test")]


def test_what_changed_just_before_it_was_read_is_read_again(corpus, cache, monkeypatch):
    """A file may change twice within the step of its file system's clock: here the second change leaves no trace."""
    changed = [time.time_ns()]
    monkeypatch.setattr(Counting, "stamp", lambda self: Stamp(str(changed[0]), changed[0]))
    first = known(corpus, cache)
    for path in corpus.iterdir():
        rewrite(path)
    assert known(corpus, cache) != first
    changed[0] -= 10 * 10**9
    assert known(corpus, cache) == known(corpus, cache) and Counting.reads == 3


def _hash_slowly(root, cache, gate, results):
    def slow(self, split):
        results.put("read")
        gate.wait(30)
        return digest_documents(TextSource.documents(self, split))

    Counting.fingerprint = slow
    results.put(known(root, cache))


def test_of_several_processes_one_reads(corpus, cache):
    """Also where the files are young, so that a later start would read them again."""
    context = multiprocessing.get_context("fork")
    gate, results = context.Event(), context.Queue()
    children = [context.Process(target=_hash_slowly, args=(corpus, cache, gate, results)) for _ in range(3)]
    for child in children:
        child.start()
    assert results.get(timeout=30) == "read"
    time.sleep(0.5)
    gate.set()
    answers = [results.get(timeout=30) for _ in children]
    for child in children:
        child.join(30)
    assert answers == [TextSource(str(corpus)).fingerprint("train")] * 3 and results.empty()


def test_a_cache_that_cannot_be_written_and_one_that_is_damaged(corpus, cache, tmp_path, settled):
    (tmp_path / "file").touch()
    expected = known(corpus, cache)
    assert known(corpus, tmp_path / "file") == expected
    for kept in (cache / "fingerprints").glob("*.json"):
        kept.write_text(kept.read_text()[:20])
    assert known(corpus, cache) == expected and Counting.reads == 3


def test_files_that_change_while_they_are_read(corpus, cache):
    tokenizer = build_tokenizer({"kind": "bytes"}, None, cache)

    class Restless(TextSource):
        def documents(self, split):
            for document in super().documents(split):
                rewrite(corpus / "a.txt")
                yield document

    with pytest.raises(DataError, match=r"the files of corpus changed while they were read: start again"):
        TokenStore.open_or_build(Restless(str(corpus)), "train", tokenizer, cache, False)
    assert not [path for path in cache.glob("tokens/*") if path.is_dir()]


@pytest.mark.usefixtures("settled")
def test_a_known_corpus_opens_without_its_text(corpus, cache, monkeypatch):
    tokenizer = build_tokenizer({"kind": "bpe", "vocab_size": 260}, TextSource(str(corpus)), cache)
    keys = {}
    for make in (TextSource, LocalText):
        split = "train" if make is TextSource else "all"
        keys[make] = TokenStore.open_or_build(make(str(corpus)), split, tokenizer, cache, False).key
        monkeypatch.setattr(make, "documents", None)
        assert TokenStore.open_or_build(make(str(corpus)), split, tokenizer, cache, False).key == keys[make]
    assert build_tokenizer({"kind": "bpe", "vocab_size": 260}, TextSource(str(corpus)), cache).vocab_size == 260
    first = known_fingerprint(StdlibSource(), "test", cache)
    monkeypatch.setattr(StdlibSource, "documents", None)
    assert known_fingerprint(StdlibSource(), "test", cache) == first


OPEN = """
import json, os, resource, sys
from zoo.data.store.token_store import TokenStore
from zoo.data.store.store_files import damage
from pathlib import Path

def now():
    fields = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    pages = int(open("/proc/self/statm").read().split()[1])
    return int(fields["rchar"]), pages * os.sysconf("SC_PAGE_SIZE")

folder = Path(sys.argv[1])
read, held = now()
assert damage(folder, verify=False) is None
store = TokenStore(folder)
opened = now()
middle = len(store) // 2
names = store.documents_at(int(store.offsets[middle]), int(store.offsets[middle]) + 3)
print(json.dumps([opened[0] - read, opened[1] - held, now()[1] - held, len(store), store.num_tokens, names]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has /proc")
def test_opening_ten_million_documents_reads_little_and_holds_little(tmp_path):
    """Less than 1 MB read and 50 MiB held; their index alone takes 320 MB."""
    count = 10**7
    folder = tmp_path / ("0" * 32)
    folder.mkdir()
    with StoreWriter(folder, 256, np.dtype(np.uint16)) as writer:
        writer.add(Document("", ""), np.array([], np.int64))
    names = np.char.add(np.arange(count).astype("S8"), b"\n")
    np.arange(0, 3 * count + 1, 3).astype("<i8").tofile(folder / "offsets.bin")
    np.ones((count, 3), "<i8").tofile(folder / "counts.bin")
    np.zeros(3 * count, np.uint16).tofile(folder / "tokens.bin")
    np.cumsum(np.char.str_len(names)).astype("<i8").tofile(folder / "name_ends.bin")
    (folder / "names.bin").write_bytes(b"".join(names.tolist()))
    write_meta(folder, folder.name, 256, "uint16")
    assert sum((folder / name).stat().st_size for name in FILES) > 450e6
    output = subprocess.run([sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True)
    read, opened, used, documents, tokens, found = json.loads(output.stdout)
    assert (documents, tokens, found) == (count, 3 * count, [str(count // 2)])
    assert read < 1e6 and opened < 50 * 2**20 and used < 50 * 2**20


def test_a_source_that_is_refused_leaves_no_cache(write, tmp_path):
    source = TextSource(str(write(lines_DOT_jsonl='{"text": 1}\n') / "lines.jsonl"))
    (tmp_path / "used").mkdir()
    for cache in (tmp_path / "a" / "b", tmp_path / "used"):
        with pytest.raises(DataError, match="expected a string"):
            known_fingerprint(source, "train", cache)
    assert not (tmp_path / "a").exists() and not list((tmp_path / "used").iterdir())
