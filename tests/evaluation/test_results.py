import copy
import dataclasses

import pytest

from zoo.evaluation.results import (
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


def content(*records):
    sections = {name: {} for name in ("run", "model", "tokenizer", "protocol")}
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
    assert len(set(METRICS)) == len(METRICS) == 10


def test_the_held_out_result_is_the_one_with_default_options(tmp_path):
    with pytest.raises(ResultError, match=r"has not been evaluated: python eval\.py run=.* task=perplexity"):
        read_held_out(tmp_path)
    for name, value in (("text-test-length24", 3.0), ("text-test-stateful", 2.0), ("text-test", 1.0)):
        record = dataclasses.replace(RECORD, value=value)
        write_results(tmp_path / "eval" / f"perplexity-{name}.json", content(record))
    assert read_held_out(tmp_path)[1]["value"] == 1.0
