import copy
import dataclasses

import pytest

from zoo.evaluation.results.records import (
    METRICS,
    Record,
    ResultError,
    check_results,
    read_held_out,
    read_results,
    read_samples,
    samples_file,
    write_results,
)
from zoo.files import replace_file

RECORD = Record("perplexity", "window", 16, None, "bits_per_byte", 1.5, (1.0, 2.0), 3, "doc", None, False)


HELD_OUT = {"split": "test", "path": None, "complete": True, "stateful": False, "window": 16, "stride": 16}


def content(*records, **protocol):
    sections = {"run": {}, "model": {"train_len": 16}, "tokenizer": {}, "protocol": {**HELD_OUT, **protocol}}
    return {"schema": "zoo-eval/1", **sections, "results": [r.to_dict() for r in records], "warnings": []}


def test_a_result_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "eval" / "perplexity-text-test.json"
    samples = [{"id": "水", "nats": 1.25}, {"id": "b", "nats": 2.0}]
    write_results(file, content(RECORD), samples)
    assert read_results(file) == content(RECORD)
    assert read_samples(file) == samples
    assert sorted(p.name for p in file.parent.iterdir()) == sorted([file.name, samples_file(file).name])


def test_a_file_without_samples_has_none(tmp_path):
    write_results(tmp_path / "a.json", content(RECORD))
    assert read_samples(tmp_path / "a.json") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "zoo-eval/2"}, r"\$\.schema: 'zoo-eval/1' was expected"),
        ({"results": {}}, r"\$\.results: {} is not of type 'array'"),
        ({"protocol": None}, r"\$\.protocol: None is not of type 'object'"),
        ({"results": [3]}, r"\$\.results\[0\]: 3 is not of type 'object'"),
        ({"results": [{"task": "perplexity"}]}, r"\$\.results\[0\]: 'variant' is a required property; .*'length'"),
    ],
)
def test_faults_of_a_file_are_named(change, message):
    with pytest.raises(ResultError, match=message):
        check_results(content(RECORD) | change)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metric", "ppl"),
        ("unit", "token"),
        ("value", float("nan")),
        ("value", "1.5"),
        ("ci95", [1.0]),
        ("ci95", 1.0),
        ("n", 0),
    ],
)
def test_faults_of_a_record_are_named(tmp_path, name, value):
    wrong = copy.deepcopy(content(RECORD))
    wrong["results"][0][name] = value
    with pytest.raises(ResultError, match=rf"results\[0\]\.{name}"):
        write_results(tmp_path / "a.json", wrong)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_refused(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"schema": "zoo-ev')
    with pytest.raises(ResultError, match=r"a\.json is not a result file"):
        read_results(file)
    file.write_text("[]")
    with pytest.raises(ResultError, match="is not of type 'object'"):
        read_results(file)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("old")

    def stopped(unfinished):
        unfinished.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace_file(file, stopped)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_metric_names_are_those_of_the_design():
    assert len(set(METRICS)) == len(METRICS) == 11


def test_the_held_out_result_is_the_one_with_default_options(tmp_path):
    with pytest.raises(ResultError, match=r"has not been evaluated: python eval\.py run=.* task=perplexity"):
        read_held_out(tmp_path)

    def write(name, value, **protocol):
        record = dataclasses.replace(RECORD, value=value)
        write_results(tmp_path / "eval" / f"perplexity-{name}.json", content(record, **protocol))

    write("x-all", 9.0, path="x.txt", split="all")
    write("x-test", 9.0, path="x")
    write("t-train", 9.0, split="train")
    write("t-test-cut", 9.0, complete=False)
    write("t-test-wide", 9.0, window=24)
    write("t-test-both", 9.0, window=24, stride=24)
    write("t-test-whole", 9.0, stateful=True)
    with pytest.raises(ResultError, match="has not been evaluated"):
        read_held_out(tmp_path)
    write("a long name-test-best", 3.0)
    write("a long name-test", 1.0)
    result, record = read_held_out(tmp_path)
    assert record["value"] == 1.0 and result["protocol"]["split"] == "test"


def test_a_held_out_result_without_a_finite_number_is_refused(tmp_path):
    file = tmp_path / "eval" / "perplexity-text-test.json"
    write_results(file, content(dataclasses.replace(RECORD, value=None)))
    with pytest.raises(ResultError, match="has no finite bits per byte"):
        read_held_out(tmp_path)


def test_numbers_of_samples_that_are_not_finite_become_null(tmp_path):
    file = tmp_path / "a.json"
    write_results(file, content(RECORD), [{"id": "a", "nats": [float("nan"), 1.0], "more": {"8": float("inf")}}])
    assert read_samples(file) == [{"id": "a", "nats": [None, 1.0], "more": {"8": None}}]
