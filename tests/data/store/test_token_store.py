import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from zoo.data import DataError, Document, TokenStore, build_tokenizer, encode_batch
from zoo.data.datamodule import LanguageData
from zoo.data.documents import digest_documents
from zoo.data.store import store_files, store_writer
from zoo.data.store import token_store as store
from zoo.data.tokenizers import tokenizer_fingerprint
from zoo.files import WriteError

TEXTS = ["first text\n", "", "zweiter  Text é", "<|endoftext|> spelt out", "x" * 500]


@pytest.fixture
def tokenizer(list_source, cache):
    return build_tokenizer({"kind": "bytes"}, list_source(), cache)


def open_store(source, tokenizer, cache, split="train"):
    return TokenStore.open_or_build(source, split, tokenizer, cache, progress=False)


def test_contents(list_source, tokenizer, cache):
    built = open_store(list_source(*TEXTS), tokenizer, cache)
    assert len(built) == 5 and built.tokens.dtype == np.uint16
    assert built.num_tokens == sum(len(text.encode()) + 1 for text in TEXTS) == built.offsets[-1]
    for index, text in enumerate(TEXTS):
        assert bytes(built.document(index).tolist()) == text.encode()
        assert built.tokens[built.offsets[index]] == tokenizer.eos_token_id == built.eos
        assert built.counts[index].tolist() == [len(text.encode()), len(text.split()), len(text)]
    assert list(built.names) == [f"train/{index}" for index in range(5)]
    with pytest.raises(IndexError):
        built.document(5)


def test_spans_name_their_documents(list_source, tokenizer, cache):
    built = open_store(list_source("aa", "bb", "cc"), tokenizer, cache)
    assert built.offsets.tolist() == [0, 3, 6, 9]
    assert built.documents_at(0, 3) == ["train/0"]
    assert built.documents_at(2, 4) == ["train/0", "train/1"]
    assert built.documents_at(3, 9) == ["train/1", "train/2"]
    with pytest.raises(IndexError):
        built.documents_at(5, 10)


def test_large_vocabularies_take_four_bytes(list_source, tokenizer, cache):
    tokenizer.add_tokens([f"<{number}>" for number in range(2**16)])
    built = open_store(list_source("<65000> a <65535>"), tokenizer, cache)
    assert built.tokens.dtype == np.uint32
    assert built.document(0).tolist() == encode_batch(tokenizer, ["<65000> a <65535>"])[0].tolist()
    assert built.tokens.max() == 257 + 65535


def test_nothing_can_be_written(list_source, tokenizer, cache):
    built = open_store(list_source(*TEXTS), tokenizer, cache)
    for array in (built.tokens, built.offsets, built.counts, built.document(0)):
        with pytest.raises(ValueError, match=r"read-only"):
            array[0] = 1


def test_the_key_follows_texts_tokenizer_and_split(list_source, tokenizer, cache):
    bpe = build_tokenizer({"kind": "bpe", "vocab_size": 260}, list_source(*TEXTS), cache)
    keys = {
        open_store(list_source(*TEXTS), tokenizer, cache).key,
        open_store(list_source(*TEXTS), tokenizer, cache, "test").key,
        open_store(list_source(*TEXTS[1:]), tokenizer, cache).key,
        open_store(list_source(*TEXTS), bpe, cache).key,
    }
    assert len(keys) == 4
    assert open_store(list_source(*TEXTS, name="other"), tokenizer, cache).key in keys


def test_a_second_opening_reads_no_text(list_source, tokenizer, cache, monkeypatch):
    first = open_store(list_source(*TEXTS), tokenizer, cache)
    monkeypatch.setattr(store, "build_store", None)
    assert open_store(list_source(*TEXTS), tokenizer, cache).key == first.key


def test_batches_do_not_show(list_source, tokenizer, cache, tmp_path, monkeypatch):
    whole = open_store(list_source(*TEXTS * 20), tokenizer, cache)
    monkeypatch.setattr(store_writer, "BATCH_DOCUMENTS", 3)
    monkeypatch.setattr(store_writer, "BATCH_CHARACTERS", 600)
    parts = open_store(list_source(*TEXTS * 20), tokenizer, tmp_path / "other")
    for name in store_files.FILES:
        assert (whole.folder / name).read_bytes() == (parts.folder / name).read_bytes()


def test_pickling_carries_the_place_not_the_tokens(list_source, tokenizer, cache):
    built = open_store(list_source("word " * 50_000), tokenizer, cache)
    packed = pickle.dumps(built)
    assert len(packed) < 1000
    assert np.array_equal(pickle.loads(packed).tokens, built.tokens)


def test_progress_without_a_terminal_is_two_lines(list_source, tokenizer, cache, capfd):
    TokenStore.open_or_build(list_source(*TEXTS), "train", tokenizer, cache)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].startswith("tokenizing list (train): 5 documents, 550 bytes, 555 tokens in")
    TokenStore.open_or_build(list_source(*TEXTS), "train", tokenizer, cache)
    assert capfd.readouterr().err == ""


def test_empty_split(list_source, tokenizer, cache):
    with pytest.raises(DataError, match=r"'validation' split of list has no documents"):
        open_store(list_source(), tokenizer, cache, "validation")
    assert not [path for path in cache.glob("tokens/*") if path.is_dir()]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("name", [*store_files.FILES, "meta.json"])
def test_damage_is_seen_and_repaired(list_source, tokenizer, cache, caplog, damage, name):
    built = open_store(list_source(*TEXTS), tokenizer, cache)
    before = built.tokens.tolist()
    damage(built.folder / name)
    again = open_store(list_source(*TEXTS), tokenizer, cache)
    assert again.tokens.tolist() == before and len(again) == 5
    assert caplog.text.count("is damaged") == 1
    assert [path.name for path in cache.glob("tokens/*") if path.is_dir()] == [built.key]


def flip_where_no_block_is_compared(path):
    raw = bytearray(path.read_bytes())
    raw[store_files.BLOCK + 10] ^= 4
    path.write_bytes(bytes(raw))


def test_all_of_a_large_store_is_compared_on_request(list_source, tokenizer, cache, caplog):
    source = list_source("word " * 100_000)
    built = open_store(source, tokenizer, cache)
    before = built.tokens.tolist()
    flip_where_no_block_is_compared(built.folder / "tokens.bin")
    assert open_store(source, tokenizer, cache).tokens.tolist() != before and not caplog.text
    again = TokenStore.open_or_build(source, "train", tokenizer, cache, progress=False, verify=True)
    assert again.tokens.tolist() == before
    assert "is damaged (tokens.bin does not match its checksum) and is built again" in caplog.text


def test_data_verify_compares_all(list_source, cache, caplog):
    def module(verify):
        spec = {"kind": "bytes"}
        return LanguageData(source, spec, length=8, batch_size=1, cache_dir=str(cache), verify=verify)

    source = list_source("word " * 100_000)
    built = module(False).store("train")
    flip_where_no_block_is_compared(built.folder / "tokens.bin")
    module(False).store("train")
    assert "damaged" not in caplog.text
    module(True).store("train")
    assert caplog.text.count("tokens.bin does not match its checksum") == 1


def test_a_store_of_an_older_format_is_built_again_under_its_key(list_source, tokenizer, cache, caplog):
    """Keys do not know of the format: they are the fingerprints of data in checkpoints."""
    source = list_source(*TEXTS)
    built = open_store(source, tokenizer, cache)
    recipe = [1, "train", source.fingerprint("train"), tokenizer_fingerprint(tokenizer)]
    assert built.key == hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:32]
    before = built.tokens.tolist()
    meta = {"format": 1, "key": built.key, "eos": 256, "dtype": "uint16", "files": {}}
    meta["sha256"] = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()
    (built.folder / "meta.json").write_text(json.dumps(meta))
    assert open_store(source, tokenizer, cache).tokens.tolist() == before
    assert "has the older format 1 and is built again" in caplog.text


def test_names_are_read_when_they_are_asked_for(list_source, tokenizer, cache):
    class Named(type(list_source())):
        def documents(self, split):
            yield from (Document(name, "text") for name in names)

        def fingerprint(self, split):
            return digest_documents(self.documents(split))

    names = ["", "two\nlines", "é", "plain", ""]
    found = open_store(Named(), tokenizer, cache).names
    assert list(found) == names and len(found) == 5 and found[-2] == "plain" and found[1:3] == names[1:3]
    with pytest.raises(IndexError):
        found[5]


def test_a_changed_description_is_damage(list_source, tokenizer, cache, caplog):
    meta = open_store(list_source(*TEXTS), tokenizer, cache).folder / "meta.json"
    meta.write_text(meta.read_text().replace('"eos": 256', '"eos": 255'))
    assert open_store(list_source(*TEXTS), tokenizer, cache).eos == 256
    assert "meta.json does not match its checksum" in caplog.text


class SlowSource:
    """Counts how often it is read to its end, by a line in a file; stops in the middle until `go` exists."""

    name = "slow"

    def __init__(self, folder, texts):
        self.folder, self.texts = folder, texts

    def documents(self, split):
        for number, text in enumerate(self.texts):
            if number == len(self.texts) // 2:
                (self.folder / f"half-{os.getpid()}").touch()
                while not (self.folder / "go").exists():
                    time.sleep(0.01)
            yield Document(str(number), text)
        with (self.folder / "reads").open("a") as file:
            file.write("read\n")

    def fingerprint(self, split):
        return digest_documents(Document(str(number), text) for number, text in enumerate(self.texts))


def _open(source, tokenizer, cache, output):
    with open(output, "w") as errors:
        sys.stderr = errors
        store_writer.BATCH_DOCUMENTS = 10
        built = TokenStore.open_or_build(source, "train", tokenizer, cache)
        print("tokens", int(built.tokens.astype(np.int64).sum()), file=errors)


def start(*args):
    process = multiprocessing.get_context("fork").Process(target=_open, args=args)
    process.start()
    return process


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_two_builders_make_one_store(tokenizer, cache, tmp_path):
    source = SlowSource(tmp_path, ["some text"] * 200)
    outputs = [tmp_path / "one.txt", tmp_path / "two.txt"]
    one = start(source, tokenizer, cache, outputs[0])
    wait_for(lambda: list(tmp_path.glob("half-*")))
    two = start(source, tokenizer, cache, outputs[1])
    wait_for(lambda: outputs[1].exists() and "waiting for another process" in outputs[1].read_text())
    (tmp_path / "go").touch()
    for process in (one, two):
        process.join(30)
        assert process.exitcode == 0
    assert (tmp_path / "reads").read_text() == "read\n"
    sums = [output.read_text().splitlines()[-1] for output in outputs]
    assert sums[0] == sums[1] and sums[0].startswith("tokens")
    assert len([path for path in cache.glob("tokens/*") if path.is_dir()]) == 1


def test_a_killed_builder_leaves_nothing_that_looks_finished(tokenizer, cache, tmp_path):
    source = SlowSource(tmp_path, ["some text"] * 200)
    process = start(source, tokenizer, cache, tmp_path / "out.txt")
    wait_for(lambda: list(tmp_path.glob("half-*")))
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    (leftover,) = [path for path in cache.glob("tokens/*") if path.is_dir()]
    assert ".tmp-" in leftover.name and (leftover / "tokens.bin").exists()
    (tmp_path / "go").touch()
    built = open_store(source, tokenizer, cache)
    assert len(built) == 200 and not leftover.exists()
    assert [path for path in cache.glob("tokens/*") if path.is_dir()] == [built.folder]


def _fill(source, tokenizer, cache, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        open_store(source, tokenizer, cache)
        results.put("no error")
    except DataError as error:
        results.put(str(error))


def test_a_full_disk_names_the_folder_and_the_need(list_source, tokenizer, cache):
    source = list_source(*["y" * 100_000] * 100)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_fill, args=(source, tokenizer, cache, results))
    process.start()
    message = results.get(timeout=30)
    process.join(30)
    assert f"token store in {cache / 'tokens'} failed" in message
    assert "about 21 MiB are needed" in message and "MiB are free" in message and "data.cache_dir" in message
    assert not [path for path in cache.glob("tokens/*") if path.is_dir()]


def test_a_cache_that_cannot_be_made(list_source, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"could not be written: Not a directory. Set data.cache_dir"):
        open_store(list_source(*TEXTS), tokenizer, tmp_path / "file")
