import multiprocessing
import os

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from zoo.data import (
    DataError,
    build_tokenizer,
    encode_batch,
    load_tokenizer,
    save_tokenizer,
    token_byte_lengths,
    tokenizer_fingerprint,
    tokenizers,
    tokens_with,
    vocabulary_size,
)

END = "<|endoftext|>"
ODD = [
    "",
    " ",
    "  two  spaces , and ' s n't .  ",
    "tab\tnewline\r\n\r\n\x00\x7f\x85\u2028",
    "e\u0301 é ﬁ Å \u00a0\u200b\ufeff",
    "漢字かな 한글 עברית 🧑‍🚀👩🏽‍🔬 \U0010ffff",
    "Ġ ▁ Ċ <0x41> <unk> <s>",
    f"before {END} after {END}{END}",
    "".join(map(chr, range(0x0, 0x250))),
]
CORPUS = ["def the(x):\n    return the_other(x)\n" * 30, *ODD]


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, list_source, cache):
    spec = {"kind": "bytes"} if request.param == "bytes" else {"kind": "bpe", "vocab_size": 300}
    return build_tokenizer(spec, list_source(*CORPUS), cache)


def encode(tokenizer, text):
    return encode_batch(tokenizer, [text])[0].tolist()


@pytest.mark.parametrize("text", ODD)
def test_round_trip_is_exact(tokenizer, text):
    ids = encode(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert token_byte_lengths(tokenizer)[ids].sum() == len(text.encode())


def test_spelled_out_end_of_text_is_text(tokenizer):
    assert tokenizer.eos_token_id not in encode(tokenizer, ODD[7])
    assert tokenizer.eos_token_id not in tokenizer(ODD[7])["input_ids"]
    assert tokenizer.eos_token == tokenizer.bos_token == END
    assert tokenizer.all_special_tokens == [END]
    assert token_byte_lengths(tokenizer)[tokenizer.eos_token_id] == 0


def test_ids_of_bytes_are_the_bytes(list_source, cache):
    tokenizer = build_tokenizer({"kind": "bytes"}, list_source(), cache)
    assert (vocabulary_size(tokenizer), tokenizer.eos_token_id) == (257, 256)
    assert token_byte_lengths(tokenizer).tolist() == [1] * 256 + [0]
    for text in ODD:
        assert bytes(encode(tokenizer, text)) == text.encode()


def test_reload_gives_the_same_ids(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_tokenizer(tokenizer, tmp_path / "saved")
    for again in (load_tokenizer(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")):
        assert again.is_fast and again.eos_token_id == tokenizer.eos_token_id
        assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
        for text in ODD:
            assert again(text)["input_ids"] == encode(tokenizer, text)
            assert again.decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize("spec", [{"kind": "bytes"}, {"kind": "bpe", "vocab_size": 400}])
def test_long_texts_are_cut_without_a_trace(list_source, cache, monkeypatch, spec):
    text = "".join(f"line {n} of  the text\n" + "\n \n\n\n" * (n % 3) for n in range(300)) + "\n\n"
    tokenizer = build_tokenizer(spec, list_source(text), cache)
    whole = encode(tokenizer, text)
    assert spec["kind"] == "bytes" or max(token.count("Ċ") for token in tokenizer.convert_ids_to_tokens(whole)) > 1
    monkeypatch.setattr(tokenizers, "PIECE", 40)
    assert len(list(tokenizers._pieces(text))) > 50
    assert encode(tokenizer, text) == whole


def test_encoding_leaves_the_tokenizer_as_it_was(tokenizer):
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    assert len(encode(tokenizer, "abcdefgh" * 40)) > 8
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 4
    assert tokenizer.backend_tokenizer.padding["length"] == 8


def test_fingerprint_tells_tokenizers_apart(list_source, cache):
    specs = [{"kind": "bytes"}, {"kind": "bpe", "vocab_size": 270}, {"kind": "bpe", "vocab_size": 280}]
    built = [build_tokenizer(spec, list_source(*CORPUS), cache) for spec in specs]
    assert len({tokenizer_fingerprint(tokenizer) for tokenizer in built}) == 3
    built[0].backend_tokenizer.enable_truncation(7)
    assert tokenizer_fingerprint(built[0]) == tokenizer_fingerprint(build_tokenizer(specs[0], list_source(), cache))


def test_training_is_deterministic_and_cached(list_source, tmp_path, capfd):
    spec = {"kind": "bpe", "vocab_size": 300, "train_bytes": 10_000}
    one = build_tokenizer(spec, list_source(*CORPUS), tmp_path / "one")
    two = build_tokenizer(spec, list_source(*CORPUS), tmp_path / "two")
    assert one.get_vocab() == two.get_vocab() and tokenizer_fingerprint(one) == tokenizer_fingerprint(two)
    assert capfd.readouterr().err.count("training") == 2
    build_tokenizer(spec, list_source(*CORPUS), tmp_path / "two")
    assert "training" not in capfd.readouterr().err
    build_tokenizer(spec, list_source(*CORPUS, "new"), tmp_path / "two")
    assert capfd.readouterr().err.count("training") == 1


def test_only_the_head_of_the_text_is_learned(list_source, cache):
    spec = {"kind": "bpe", "vocab_size": 300, "train_bytes": 100}
    small = build_tokenizer(spec, list_source("ab" * 100, "zq" * 5000), cache)
    assert "abab" in small.get_vocab() and "zq" not in small.get_vocab()


def test_a_damaged_cache_is_trained_again(list_source, cache, caplog):
    spec = {"kind": "bpe", "vocab_size": 300}
    before = build_tokenizer(spec, list_source(*CORPUS), cache)
    (file,) = cache.glob("tokenizers/*/tokenizer.json")
    whole = file.read_text()
    other = whole.replace('"use_regex": true', '"use_regex": false')
    assert other != whole
    for damaged in (whole[:-100], other, ""):
        file.write_text(damaged)
        again = build_tokenizer(spec, list_source(*CORPUS), cache)
        assert tokenizer_fingerprint(again) == tokenizer_fingerprint(before)
    assert caplog.text.count("is damaged") == 3


def _build(source, cache, barrier, results):
    barrier.wait()
    tokenizer = build_tokenizer({"kind": "bpe", "vocab_size": 400}, source, cache)
    results.put(tokenizer_fingerprint(tokenizer))


def test_two_processes_train_once(list_source, cache):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_build, args=(list_source(*CORPUS), cache, barrier, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert results.get(timeout=30) == results.get(timeout=30)
    for worker in workers:
        worker.join(10)
        assert worker.exitcode == 0
    assert len(list(cache.glob("tokenizers/*/tokenizer.json"))) == 1
    assert not list(cache.glob("tokenizers/*.tmp-*"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "words"}, "tokenizer.kind=words: expected one of bytes, bpe, pretrained"),
        ({}, "tokenizer.kind=None"),
        ({"kind": "bpe", "vocab_size": 256}, "vocab_size=256: .*at least 257"),
        ({"kind": "bpe", "vocab_size": 300, "train_bytes": 0}, "train_bytes=0"),
        ({"kind": "bpe"}, "'bpe': missing 1 required positional argument: 'vocab_size'"),
        ({"kind": "bytes", "size": 3}, "'bytes': got an unexpected keyword argument 'size'"),
    ],
)
def test_bad_specs(list_source, cache, spec, message):
    with pytest.raises(DataError, match=message):
        build_tokenizer(spec, list_source(*CORPUS), cache)


def test_missing_or_corrupt_folders(tmp_path, list_source, cache, monkeypatch):
    with pytest.raises(DataError, match=r"no tokenizer folder at .*absent"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "corrupt").mkdir()
    with pytest.raises(DataError, match=r"no tokenizer could be loaded from .*corrupt"):
        load_tokenizer(tmp_path / "corrupt")
    (tmp_path / "corrupt" / "tokenizer.json").write_text("{")
    (tmp_path / "corrupt" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match=r"no tokenizer could be loaded from .*tokenizer\.id=FOLDER"):
        build_tokenizer({"kind": "pretrained", "id": str(tmp_path / "corrupt")}, list_source(), cache)


def saved(folder, backend, **special):
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def fallback_backend():
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for token in ("▁", "a", "b", "é", "ab", "▁ab"):
        vocabulary[token] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("▁", "ab")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def test_pretrained_with_byte_fallback(tmp_path, list_source, cache):
    folder = saved(tmp_path / "llama", fallback_backend(), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer = build_tokenizer({"kind": "pretrained", "id": folder, "revision": None}, list_source(), cache)
    lengths = token_byte_lengths(tokenizer)
    assert tokenizer.eos_token_id == 2 and lengths[:3].tolist() == [0, 0, 0]
    for text in ("ab ab a b", "é 漢 🧑‍🚀\n", ""):
        assert lengths[encode(tokenizer, text)].sum() == len(text.encode())


def test_pretrained_byte_level_with_added_words(tmp_path, list_source, cache):
    folder = tmp_path / "base"
    tokenizer = build_tokenizer({"kind": "bpe", "vocab_size": 300}, list_source(*CORPUS), cache)
    tokenizer.add_tokens(["naïve word"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(f"{END} $A", special_tokens=[(END, 0)])
    save_tokenizer(tokenizer, folder)
    again = build_tokenizer({"kind": "pretrained", "id": str(folder)}, list_source(), cache)
    text = f"a naïve word <pad> {END}"
    assert token_byte_lengths(again)[encode(again, text)].sum() == len(text.encode())
    assert again.convert_tokens_to_ids("naïve word") in encode(again, text)
    assert not {again.pad_token_id, again.eos_token_id} & set(encode(again, text))
    assert vocabulary_size(again) == len(token_byte_lengths(again)) == 302


def test_pretrained_without_end_or_without_bytes(tmp_path, list_source, cache):
    folder = saved(tmp_path / "no_end", fallback_backend(), unk_token="<unk>")
    with pytest.raises(DataError, match=r"has no end-of-text token"):
        build_tokenizer({"kind": "pretrained", "id": folder}, list_source(), cache)
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "a": 2}, unk_token="[UNK]"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    tokenizer = load_tokenizer(saved(tmp_path / "words", words, eos_token="[SEP]", unk_token="[UNK]"))
    with pytest.raises(DataError, match=r"WordPiece tokenizer do not stand for fixed bytes"):
        token_byte_lengths(tokenizer)


def test_threads_stay_off_outside_encoding(tokenizer):
    encode_batch(tokenizer, ["a"] * 100)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"


def test_encode_batch_types(tokenizer):
    found = encode_batch(tokenizer, ["", "abc"])
    assert [ids.dtype for ids in found] == [np.int64, np.int64] and found[0].shape == (0,)
    assert encode_batch(tokenizer, []) == []


def test_tokens_with_a_text(tokenizer):
    found = tokens_with(tokenizer, ["\n"])
    assert found == [i for i in range(vocabulary_size(tokenizer)) if "\n" in tokenizer.decode([i])]
    assert found
    assert tokens_with(tokenizer, [END]) == [tokenizer.eos_token_id]
    assert tokens_with(tokenizer, []) == []
