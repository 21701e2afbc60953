import copy
import json

import jsonschema
import pytest

from tests.evaluation import result_files
from zoo.evaluation.results import models
from zoo.evaluation.results.models import Results, schema_text
from zoo.evaluation.results.records import (
    ResultError,
    make_results,
    read_held_out,
    read_results,
    read_samples,
    samples_file,
    write_results,
)
from zoo.files import replace_file

RECORD = result_files.record("perplexity", "window", 16, None, "bits_per_byte", 1.5, (1.0, 2.0), 3, "doc", None, False)


HELD_OUT = {"split": "test", "path": None, "complete": True, "stateful": False, "window": 16, "stride": 16}


def content(*records, **protocol):
    return result_files.content(records, {**HELD_OUT, **protocol}, train_len=16)


def results(*records, **protocol):
    return make_results(content(*records, **protocol))


def test_a_result_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "eval" / "perplexity-text-test.json"
    samples = [{"id": "水", "nats": 1.25}, {"id": "b", "nats": 2.0}]
    write_results(file, results(RECORD), samples)
    assert read_results(file) == results(RECORD)
    assert json.loads(file.read_text()) == content(RECORD)
    assert read_samples(file) == samples
    assert sorted(p.name for p in file.parent.iterdir()) == sorted([file.name, samples_file(file).name])


def test_a_file_without_samples_has_none(tmp_path):
    write_results(tmp_path / "a.json", results(RECORD))
    assert read_samples(tmp_path / "a.json") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "zoo-eval/2"}, r"\$\.schema: Input should be 'zoo-eval/1' \(zoo-eval/2\)"),
        ({"results": {}}, r"\$\.results: Input should be a valid list \({}\)"),
        ({"protocol": None}, r"\$\.protocol: Input should be a valid dictionary \(None\)"),
        ({"protocol": {"x": float("inf")}}, r"\$\.protocol: .*not JSON compliant"),
        ({"results": [3]}, r"\$\.results\[0\]: .*valid dictionary .* \(3\)"),
        ({"results": [{"task": "perplexity"}]}, r"\$\.results\[0\]\.variant: Field required; .*length"),
    ],
)
def test_faults_of_a_file_are_named(change, message):
    with pytest.raises(ResultError, match=message):
        make_results(content(RECORD) | change)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metric", "ppl"),
        ("unit", ""),
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
        make_results(wrong)
    (tmp_path / "a.json").write_text(json.dumps(wrong))
    with pytest.raises(ResultError, match=rf"results\[0\]\.{name}|NaN is no finite number"):
        read_results(tmp_path / "a.json")


def test_damaged_files_are_refused(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"schema": "zoo-ev')
    with pytest.raises(ResultError, match=r"a\.json is not a result file"):
        read_results(file)
    file.write_text("[]")
    with pytest.raises(ResultError, match="should be a valid dictionary"):
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


def test_the_schema_file_is_what_the_models_give():
    """If not: python -m zoo.evaluation.results.models writes it anew."""
    assert models.SCHEMA_FILE.read_text() == schema_text()


def test_the_schema_takes_what_the_models_take_and_refuses_what_they_refuse():
    schema = json.loads(models.SCHEMA_FILE.read_text())
    check = jsonschema.Draft202012Validator(schema).is_valid
    assert check(json.loads(json.dumps(content(RECORD))))
    assert len(schema["$defs"]["Record"]["properties"]["metric"]["examples"]) == 11
    for section in ("schema", *Results.model_fields):
        lacking = {key: value for key, value in content(RECORD).items() if key != section}
        assert check(lacking) == (section == "schema_")
    for name, value in (("value", "1.5"), ("ci95", [1.0]), ("n", 0), ("unit", ""), ("length", -1), ("metric", None)):
        wrong = json.loads(json.dumps(content(RECORD)))
        wrong["results"][0][name] = value
        assert not check(wrong), name
        with pytest.raises(ResultError):
            make_results(wrong)


def test_the_held_out_result_is_the_one_with_default_options(tmp_path):
    with pytest.raises(ResultError, match=r"has not been evaluated: python eval\.py run=.* task=perplexity"):
        read_held_out(tmp_path)

    def write(name, value, **protocol):
        record = RECORD.model_copy(update={"value": value})
        write_results(tmp_path / "eval" / f"perplexity-{name}.json", results(record, **protocol))

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
    assert record.value == 1.0 and result.protocol["split"] == "test"


def test_a_held_out_result_without_a_finite_number_is_refused(tmp_path):
    file = tmp_path / "eval" / "perplexity-text-test.json"
    write_results(file, results(RECORD.model_copy(update={"value": None})))
    with pytest.raises(ResultError, match="has no finite bits per byte"):
        read_held_out(tmp_path)


def test_numbers_of_samples_that_are_not_finite_become_null(tmp_path):
    file = tmp_path / "a.json"
    write_results(file, results(RECORD), [{"id": "a", "nats": [float("nan"), 1.0], "more": {"8": float("inf")}}])
    assert read_samples(file) == [{"id": "a", "nats": [None, 1.0], "more": {"8": None}}]
