"""Results of lm-evaluation-harness become records; none of this needs the package."""

import json
import math
import sys

import numpy as np
import pytest

from tests.evaluation.tiny_run import make_run
from zoo.config import ConfigError
from zoo.evaluation.lm_eval.records import as_json, make_records, make_samples
from zoo.evaluation.lm_eval.task import LmEvalTask
from zoo.evaluation.results.statistics import wilson
from zoo.runs.loaded_run import open_run


def harness(metric, items, value, stderr="N/A", kind="none", **sections):
    samples = [{"filter": kind, "arguments": [("a", "b")] * 4, metric: item} for item in items]
    entry = {"name": "t", "alias": "t", "sample_len": len(items), f"{metric},{kind}": value}
    entry[f"{metric}_stderr,{kind}"] = stderr
    return {"results": {"t": entry}, "samples": {"t": samples}, **sections}


def only(results):
    (record,) = make_records(results, 64, 0, 1.5)
    return record


def test_accuracy_has_wilsons_interval_and_its_chance():
    record = only(harness("acc", [1.0, 0.0, 1.0], 2 / 3, configs={"t": {"output_type": "multiple_choice"}}))
    assert (record.task, record.variant, record.length) == ("lm_eval", "t", 64)
    assert (record.metric, record.value, record.n, record.unit) == ("accuracy", 2 / 3, 3, "sample")
    assert record.ci95 == wilson(2, 3)
    assert (record.chance, record.higher_is_better, record.wall_s) == (0.25, True, 1.5)


def test_variants_name_shots_filter_and_normalization():
    results = harness("acc_norm", [1, 0], 0.5, kind="strict", **{"n-shot": {"t": 5}})
    assert (only(results).metric, only(results).variant) == ("accuracy", "t/5-shot/strict/acc_norm")


@pytest.mark.parametrize(
    ("metric", "formula"),
    [("word_perplexity", lambda rate: math.exp(-rate)), ("bits_per_byte", lambda rate: -rate / math.log(2))],
)
def test_intervals_of_weighted_perplexities_are_those_of_ratios(metric, formula):
    rng = np.random.default_rng(0)
    weights = rng.integers(50, 100, 200)
    items = [(-2.0 * weight + rng.normal(0, 5), int(weight)) for weight in weights]
    record = only(harness(metric, items, formula(sum(a for a, _ in items) / weights.sum())))
    low, high = record.ci95
    assert low < record.value < high and not record.higher_is_better and record.unit == "doc"
    spread = math.sqrt(sum((a + 2.0 * b) ** 2 for a, b in items)) / weights.sum()  # of the rate, by the delta method
    width = abs(formula(-2.0 + 1.96 * spread) - formula(-2.0 - 1.96 * spread))
    assert high - low == pytest.approx(width, rel=0.15)


def test_means_of_other_numbers_have_the_bootstraps_interval():
    values = np.random.default_rng(1).normal(0.5, 0.1, 100).tolist()
    record = only(harness("f1", values, sum(values) / 100))
    half = 1.96 * np.std(values) / 10
    assert record.ci95 == pytest.approx((record.value - half, record.value + half), abs=half / 4)


def test_numbers_that_are_no_mean_have_the_standard_error_of_the_harness_or_nothing():
    pairs = [(1, 0), (0, 0), (1, 1)]
    assert only(harness("f1", pairs, 0.66, stderr=0.1)).ci95 == pytest.approx((0.464, 0.856), abs=1e-3)
    assert only(harness("f1", pairs, 0.66)).ci95 is None
    assert only(harness("f1", [0.5], 0.5)).ci95 is None
    assert only(harness("f1", [math.nan, 1.0], math.nan)).value is None


def grouped(value, stderr):
    samples = {name: [{"filter": "none", "acc": acc} for acc in accs] for name, accs in (("a", [1, 1, 0]), ("b", [0]))}
    entry = {"name": "g", "sample_len": 4, "acc,none": value, "acc_stderr,none": stderr}
    return {"results": {"g": entry}, "group_subtasks": {"h": ["g"], "g": ["a", "b"]}, "samples": samples}


def test_groups_have_the_samples_of_their_tasks_together():
    record = only(grouped(0.5, 0.3))
    assert (record.n, record.value, record.chance, record.variant) == (4, 0.5, None, "g")
    assert record.ci95 == wilson(2, 4)


def test_groups_that_weigh_their_tasks_alike_have_an_interval_within_0_and_1():
    assert only(grouped(1 / 3, 0.1)).ci95 == pytest.approx((1 / 3 - 0.196, 1 / 3 + 0.196), abs=1e-3)
    assert only(grouped(1 / 3, 0.4)).ci95 == (0.0, 1.0)
    without = grouped(1 / 3, 0.1) | {"samples": {}}
    assert only(without).n == 4 and make_records({"results": {"g": {"acc,none": 0.5}}}, 64, 0, 1.0) == []


def test_metrics_of_other_kinds_make_no_record():
    results = harness("bleu", [1.0], 1.0)
    assert make_records(results, 64, 0, 1.0) == []
    assert make_samples(results) == [{"task": "t", "filter": "none", "arguments": [["a", "b"]] * 4, "bleu": 1.0}]


def test_everything_becomes_json():
    value = {1: np.float32(0.5), "a": [np.nan, float("inf"), np.int64(3), (True, None)], "f": len, "b": np.arange(2)}
    assert as_json(value) == {"1": 0.5, "a": [None, None, 3, [True, None]], "f": "len", "b": [0, 1]}
    json.dumps(as_json(value), allow_nan=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(make_run(tmp_path_factory.mktemp("run")))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": []}, "task.names is empty"),
        ({"max_length": 0}, "task.max_length=0"),
        ({"batch_tokens": 0}, "task.batch_tokens=0"),
        ({"num_fewshot": -1}, "task.num_fewshot=-1"),
        ({"limit": 2.5}, "task.limit=2.5"),
        ({"limit": 0}, "task.limit=0"),
    ],
)
def test_options_out_of_range(run, options, message):
    with pytest.raises(ConfigError, match=message):
        LmEvalTask(**{"names": ["t"]} | options).evaluate(run.subject, 0)


def test_without_the_package_it_says_what_to_install(run, monkeypatch):
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "zoo.evaluation.lm_eval.model", raising=False)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt -e .\[lm-eval\]"):
        LmEvalTask(names=["piqa"]).evaluate(run.subject, 0)
    with pytest.raises(ModuleNotFoundError, match="lm-evaluation-harness is not installed"):
        import zoo.evaluation.lm_eval.model  # noqa: F401
