"""A run folder evaluated by the functions behind eval.py."""

import json
import math
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.evaluation.tiny_run import TEXTS, make_run, save_checkpoint, small_decoder
from zoo.config import ConfigError
from zoo.data import DataError
from zoo.evaluation.evaluate import evaluate_run
from zoo.evaluation.program import show
from zoo.evaluation.results.records import read_results, read_samples
from zoo.evaluation.tasks.base import build_task
from zoo.model.checkpoint import CheckpointError
from zoo.runs.corpus import count_documents, open_corpus
from zoo.runs.loaded_run import open_run
from zoo.runs.provenance import layer_pattern, split_cache_bytes


def evaluate(run_folder, **options):
    return evaluate_run(open_run(run_folder), build_task({"name": "perplexity"} | options))


def value(written, metric):
    return next(record.value for record in written.records if record.metric == metric)


@pytest.mark.slow
def test_result_file_of_the_test_split(run_folder):
    written = evaluate(run_folder)
    file = run_folder / "eval" / "perplexity-text-test.json"
    content = read_results(file).to_dict()
    sizes = [len(text.encode()) for text in TEXTS["test"]]
    assert content == json.loads(json.dumps(written.results.to_dict()))
    assert content["protocol"]["bytes"] == content["protocol"]["tokens"] == sum(sizes)
    assert content["protocol"]["words"] == sum(len(text.split()) for text in TEXTS["test"])
    assert (content["protocol"]["window"], content["protocol"]["stride"]) == (16, 16)
    assert content["model"]["layers"] == ["lightning", "softmax"]
    assert (content["model"]["train_tokens"], content["model"]["step"]) == (700, 7)
    assert content["run"]["git"] == {"commit": "abc"}
    assert [sample["bytes"] for sample in read_samples(file)] == sizes
    whole = [r for r in content["results"] if r["variant"] == "window"]
    assert [r["metric"] for r in whole] == [
        "perplexity",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
    ]
    assert all(r["ci95"][0] <= r["value"] <= r["ci95"][1] and r["n"] == 3 for r in whole)
    assert value(written, "bits_per_byte") == pytest.approx(math.log2(value(written, "byte_perplexity")))
    assert all(path.is_file() for path in written.files)
    assert len(written.files) == 3


def test_bits_per_byte_count_the_bytes_of_the_text_not_its_characters(run_folder):
    written = evaluate(run_folder)
    nats = sum(sample["nats"] for sample in written.samples)
    encoded = sum(len(text.encode()) for text in TEXTS["test"])
    assert encoded > sum(map(len, TEXTS["test"]))
    assert value(written, "bits_per_byte") == pytest.approx(nats / encoded / math.log(2))


@pytest.mark.slow
def test_batch_size_and_seed_do_not_change_values(run_folder):
    a, b = (evaluate(run_folder, batch_tokens=n, fresh=True) for n in (1, 9999))
    assert value(a, "perplexity") == pytest.approx(value(b, "perplexity"), rel=1e-5)
    other = evaluate_run(open_run(run_folder), build_task({"name": "perplexity", "fresh": True}), seed=1)
    assert value(other, "perplexity") == pytest.approx(value(b, "perplexity"), rel=1e-9)
    assert other.results.run.seed == 1


@pytest.mark.slow
def test_caps_take_whole_documents_and_say_so(run_folder):
    written = evaluate(run_folder, max_bytes=100)
    assert written.protocol["documents"] == 1
    assert not written.protocol["complete"]
    assert any("Only the first 1 of 3 documents" in warning for warning in written.warnings)
    assert written.files[0].name == "perplexity-text-test-max_bytes100.json"
    assert evaluate(run_folder, max_documents=2).protocol["documents"] == 2


def test_count_documents():
    sizes = np.array([10, 20, 30])
    assert [count_documents(sizes, cap) for cap in (1, 10, 29, 30, 60, 99)] == [1, 1, 1, 2, 3, 3]
    assert count_documents(sizes, 60, 2) == 2
    with pytest.raises(DataError, match=r"task\.max_documents=0"):
        count_documents(sizes, None, 0)


def test_options_that_change_the_numbers_change_the_name(run_folder):
    wide = evaluate(run_folder, length=24, stride=8)
    assert wide.files[0].name == "perplexity-text-test-length24-stride8.json"
    assert wide.records[0].variant == "sliding"
    assert any("longer than those of training" in warning for warning in wide.warnings)


def test_other_local_text_is_read_whole(run_folder, tmp_path):
    file = tmp_path / "my book.txt"
    file.write_text("Ein Buch über 水.\n", encoding="utf-8")
    written = evaluate(run_folder, path=str(file))
    assert re.fullmatch(r"perplexity-my_book\.txt-all-path[0-9a-f]{8}\.json", written.files[0].name)
    assert written.protocol["bytes"] == len("Ein Buch über 水.\n".encode())
    assert all(record.ci95 is None for record in written.records)
    with pytest.raises(DataError, match=r"task\.path=.*no such file"):
        evaluate(run_folder, path=str(tmp_path / "none.txt"))


@pytest.mark.slow
def test_what_is_read_and_the_seed_are_part_of_the_name(run_folder, tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "book.jsonl").write_text('{"text": "one two", "body": "three"}\n')
    book = {"path": str(tmp_path / "a" / "book.jsonl")}
    first, other, column = (
        evaluate(run_folder, **options).stem
        for options in (book, {"path": str(tmp_path / "b" / "book.jsonl")}, {**book, "text_column": "body"})
    )
    assert len({first, other}) == 2 and column == f"{first}-text_columnbody"
    run, task = open_run(run_folder), build_task({"name": "perplexity"})
    assert evaluate_run(run, task, seed=3).stem == "perplexity-text-test-seed3"
    assert evaluate_run(run, task, seed=0).stem == "perplexity-text-test"


def test_a_missing_split_names_those_that_exist(tmp_path):
    run = make_run(tmp_path, texts={split: TEXTS[split] for split in ("train", "validation")})
    with pytest.raises(DataError, match=r"no split 'test'.*It has train, validation: choose with task\.split="):
        evaluate(run)
    assert not (run / "eval").exists()
    with pytest.raises(ConfigError, match=r"task\.split=dev: expected one of train, validation, test"):
        evaluate(run, split="dev")


@pytest.mark.slow
def test_changed_data_and_training_text_are_pointed_out(run_folder):
    run = open_run(run_folder)
    key = open_corpus(run.subject, "train").store.key
    tokenizer = run.trained.tokenizer
    for given, changed in ((key, False), ("0" * 32, True)):
        data = {"train": given}
        save_checkpoint(run_folder / "checkpoints" / "best.ckpt", small_decoder(), tokenizer=tokenizer, data=data)
        best = evaluate_run(open_run(run_folder, "best"), build_task({"name": "perplexity", "split": "train"}))
        assert any("changed" in warning for warning in best.warnings) == changed
        assert any("trained on this text" in warning for warning in best.warnings)


def test_nothing_is_left_by_an_evaluation_that_is_stopped(run_folder, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.evaluation.tasks.perplexity.evaluate_perplexity", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run_folder)
    assert not (run_folder / "eval").exists()


def test_table_shows_values_warnings_and_files(run_folder, tmp_path):
    with (tmp_path / "out").open("w+", encoding="utf-8") as out:
        written = evaluate(run_folder)
        show(written, Console(file=out, width=100))
        out.seek(0)
        text = out.read()
    assert "bits_per_byte" in text
    assert "Intervals over 3 documents are rough." in text
    assert all(str(file) in text for file in written.files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "ppl"}, r"task\.name=ppl: unknown task; expected one of babi, cwe"),
        ({"window": 3}, r"task\.window: unknown option; expected one of task\.fresh, task\.split"),
        ({"length": 0}, r"task\.length=0"),
        ({"stride": 17}, r"task\.stride=17: expected a number in 1\.\.16"),
        ({"batch_tokens": 0}, r"task\.batch_tokens=0"),
    ],
)
def test_options_that_cannot_be_used(run_folder, options, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(run_folder, **options)


def test_run_must_be_given_and_exist(tmp_path):
    for run in (None, ""):
        with pytest.raises(ConfigError, match="run is not set"):
            open_run(run)
    with pytest.raises(ConfigError, match="not a run folder"):
        open_run(str(tmp_path))


def test_a_checkpoint_of_another_tokenizer_is_refused(run_folder):
    file = run_folder / "checkpoints" / "last.ckpt"
    tokenizer = open_run(run_folder).trained.tokenizer
    save_checkpoint(file, small_decoder(), tokenizer="0" * 64)
    with pytest.raises(CheckpointError, match=r"another tokenizer.*Put the tokenizer"):
        open_run(run_folder)
    save_checkpoint(file, small_decoder(vocab_size=200), tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="vocabulary of 200, its tokenizer needs 257"):
        open_run(run_folder)
    save_checkpoint(file, small_decoder(vocab_size=320), tokenizer=tokenizer)
    assert open_run(run_folder).decoder.config.vocab_size == 320


def test_damaged_and_foreign_checkpoints_are_refused(run_folder):
    file = run_folder / "checkpoints" / "last.ckpt"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_run(run_folder)
    file.write_bytes(whole)
    content = torch.load(file)
    del content["zoo"]
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=r"not written by train\.py"):
        open_run(run_folder)
    with pytest.raises(CheckpointError, match="it has last"):
        open_run(run_folder, "step-9")


def test_layer_pattern():
    assert layer_pattern(["a", "a", "b", "a"]) == "2xa+b+a"


def test_cache_bytes_are_divided_into_state_and_what_grows():
    state, growing = split_cache_bytes(small_decoder(["lightning"]), 64)
    assert (state > 0, growing) == (True, 0)
    state, growing = split_cache_bytes(small_decoder(["softmax"]), 64)
    assert (state, growing) == (0, 64 * 2 * 16 * 4)
