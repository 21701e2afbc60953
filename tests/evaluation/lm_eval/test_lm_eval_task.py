"""Tasks of lm-evaluation-harness over local data, from their YAML files to the result file, without a network."""

import json
import socket
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from tests.evaluation.tiny_run import make_run
from zoo.config import ConfigError
from zoo.data import DataError
from zoo.evaluation.evaluate import evaluate_run, file_stem
from zoo.evaluation.lm_eval import completion
from zoo.evaluation.lm_eval import model as lm_eval
from zoo.evaluation.lm_eval.task import LmEvalTask, _listed
from zoo.evaluation.results.records import read_results, read_samples
from zoo.evaluation.scoring import documents as scoring
from zoo.evaluation.tasks.perplexity import PerplexityTask
from zoo.runs import corpus
from zoo.runs.file_names import path_part
from zoo.runs.loaded_run import open_run

EOT, LENGTH = 256, 48
STORIES = ["one two three", "Größe: 42 µm, 水 🎉 " * 5 + "x", "abc def ghi " * 20 + "end"]
CHOICES = [" red", " green", " dark blue"]
QUESTIONS = [f"The colour of number {n} is" for n in range(5)]


@pytest.fixture(scope="module", autouse=True)
def no_network():
    """Connections fail, and none is tried, whatever was imported and configured before."""
    tried = []

    def refuse(self, address):
        tried.append(address)
        raise ConnectionError(f"no network in tests: {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_OFFLINE", "1")
        patch.setattr(socket.socket, "connect", refuse)
        yield
    assert tried == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    opened = open_run(make_run(tmp_path_factory.mktemp("run")))
    return replace(opened, decoder=opened.decoder.double())


def write_task(folder, name, documents, **options):
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    content = {"task": name, "dataset_path": "json", "test_split": "test", "metadata": {"version": 1}, **options}
    content["dataset_kwargs"] = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


def metrics(*names, **options):
    return [{"metric": name, "aggregation": "mean", "higher_is_better": True, **options} for name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("tasks")
    choose = {"output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}"}
    choose |= {"doc_to_target": "{{answer}}", "target_delimiter": "", "metric_list": metrics("acc", "acc_norm")}
    colours = [{"question": q, "choices": CHOICES, "answer": n % 3} for n, q in enumerate(QUESTIONS)]
    write_task(folder, "colours", colours, **choose)
    write_task(folder, "colours_again", colours[:2], **choose)
    rolling = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    write_task(
        folder, "stories", [{"text": text} for text in STORIES], **rolling, metric_list=[{"metric": n} for n in names]
    )
    write = {"output_type": "generate_until", "doc_to_text": "{{prompt}}", "doc_to_target": "{{expected}}"}
    write |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 6}, "metric_list": metrics("exact_match")}
    prompts = [*QUESTIONS[:3], "long prompt " * 10]
    expected = [written(run, prompt) for prompt in prompts[:2]] + ["something else", written(run, prompts[3])]
    echo = [{"prompt": prompt, "expected": text} for prompt, text in zip(prompts, expected)]
    write_task(folder, "echo", echo, **write)
    group = {"group": "all_colours", "task": ["colours", "colours_again"]}
    group["aggregate_metric_list"] = [{"metric": "acc", "weight_by_size": True}]
    (folder / "group.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    return folder


def written(run, prompt, new=6):
    tokens = ([EOT, *prompt.encode()] if len(prompt) < LENGTH - new else [*prompt.encode()])[-(LENGTH - new) :]
    return run.tokenizer.decode(run.decoder.generate([tokens], new, temperature=0, stop_token=EOT)[0]).split("\n")[0]


def likelihood(run, context, continuation):
    inputs = torch.tensor([[EOT, *context.encode(), *continuation.encode()]])
    with torch.no_grad():
        found = run.decoder(inputs[:, :-1])[0].log_softmax(-1).gather(1, inputs[0, 1:, None])
    return found[-len(continuation.encode()) :].sum().item()


def task(folder, *names, **options):
    options = {"max_length": LENGTH, "bootstrap_iters": 10} | options
    return LmEvalTask(names=names, include_path=str(folder), builtin_tasks=False, **options)


@pytest.fixture(scope="module")
def written_results(run, folder):
    return evaluate_run(run, task(folder, "all_colours", "stories", "echo"), seed=1)


def record(results, variant, metric):
    return next(r for r in results.records if (r.variant, r.metric) == (variant, metric))


def test_accuracy_is_that_of_likelihoods_computed_one_by_one(run, written_results):
    table = np.array([[likelihood(run, question, choice) for choice in CHOICES] for question in QUESTIONS])
    answers = np.arange(len(QUESTIONS)) % 3
    right, per_character = (
        table.argmax(1) == answers,
        (table / [len(choice) for choice in CHOICES]).argmax(1) == answers,
    )
    found = record(written_results, "colours", "accuracy")
    assert (found.value, found.n, found.chance, found.length) == (right.mean(), 5, pytest.approx(1 / 3), LENGTH)
    assert record(written_results, "colours/acc_norm", "accuracy").value == per_character.mean()
    together = record(written_results, "all_colours", "accuracy")
    assert together.value == pytest.approx((right.sum() + right[:2].sum()) / 7) and together.n == 7


def test_perplexities_are_those_of_our_own_task(run, written_results, tmp_path):
    for number, text in enumerate(STORIES):
        (tmp_path / f"{number}.txt").write_text(text, encoding="utf-8")
    ours = PerplexityTask(path=str(tmp_path), length=LENGTH).evaluate(run.subject, 0)
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        expected = next(r.value for r in ours.records if r.metric == metric)
        found = record(written_results, "stories", metric)
        assert found.value == pytest.approx(expected, rel=1e-5)
        assert (found.n, found.unit, found.higher_is_better) == (3, "doc", False)
        assert found.ci95[0] < found.value < found.ci95[1]


def test_written_text_is_compared_with_what_was_expected(written_results):
    found = record(written_results, "echo", "exact_match")
    assert (found.value, found.n) == (0.75, 4)
    assert any("1 of 4 prompts" in warning for warning in written_results.warnings)


def test_the_result_file_holds_all_that_the_harness_found(written_results, folder):
    where = path_part(str(folder))
    content = read_results(written_results.files[0]).to_dict()
    assert written_results.files[0].name == f"lm_eval-all_colours-stories-echo-max_length{LENGTH}-{where}-seed1.json"
    protocol = content["protocol"]
    assert protocol["lm_eval"]["results"]["colours"]["acc,none"] == content["results"][0]["value"]
    assert protocol["lm_eval"]["n-samples"]["echo"] == {"original": 4, "effective": 4}
    assert protocol["lm_eval"]["group_subtasks"] == {"all_colours": ["colours", "colours_again"]}
    assert protocol["lm_eval"]["config"]["random_seed"] == 1
    assert protocol["lm_eval_version"].startswith("0.")
    assert protocol["requests"] == {
        "contexts": 7 * 3,
        "joined": 0,
        "prompts": 4,
        "prompts_cut": 1,
        "prompts_tokens_cut": 120 - (LENGTH - 6),
    }
    samples = Counter(sample["task"] for sample in read_samples(written_results.files[0]))
    assert samples == {"colours": 5, "colours_again": 2, "stories": 3, "echo": 4}


@pytest.mark.slow
def test_a_part_of_a_task(run, folder, capsys):
    outcome = evaluate_run(run, task(folder, "colours", limit=2, num_fewshot=0, max_length=None))
    assert outcome.files[0].is_file()
    assert {r.n for r in outcome.records} == {2}
    assert (outcome.records[0].length, outcome.protocol["max_length"]) == (16, 16)
    assert outcome.stem == f"lm_eval-colours-limit2-num_fewshot0-{path_part(str(folder))}"
    assert "Only a part" in outcome.warnings[-1] and "6 of 6 contexts" in outcome.warnings[0]
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_generation_options_replace_those_of_the_task(run, folder):
    asked = task(folder, "echo", gen_kwargs={"max_gen_toks": 1})
    outcome = asked.evaluate(run.subject, 0)
    texts = [sample["resps"][0][0] for sample in outcome.samples]
    assert texts[0] == written(run, QUESTIONS[0], 1) and max(map(len, texts)) <= 1
    assert file_stem(asked, outcome, run.subject).endswith("max_gen_toks1")


def test_long_lists_of_tasks_make_short_file_names(run, folder):
    first, second = (_listed([f"task_number_{n}" for n in range(count)]) for count in (40, 41))
    assert first.startswith("task_number_0-and-39-") and len(first) < 60 and first != second


def test_unknown_tasks_and_missing_data(run, folder, tmp_path):
    with pytest.raises(ConfigError, match=r"'colour', which is no task.*did you mean colours"):
        task(folder, "colours", "colour").evaluate(run.subject, 0)
    write_task(tmp_path, "gone", [], output_type="loglikelihood_rolling", doc_to_target="{{text}}")
    (tmp_path / "gone.jsonl").unlink()
    with pytest.raises(DataError, match="gone of lm-evaluation-harness could not be loaded"):
        task(tmp_path, "gone").evaluate(run.subject, 0)


@pytest.mark.slow
def test_requests_are_kept_and_an_evaluation_that_was_stopped_goes_on(folder, tmp_path, monkeypatch):
    opened = open_run(make_run(tmp_path))
    asked = {"calls": 0, "limit": None}

    def counting(real):
        def score(*arguments, **options):
            if asked["limit"] is not None and asked["calls"] >= asked["limit"]:
                raise KeyboardInterrupt
            asked["calls"] += 1
            return real(*arguments, **options)

        return score

    for module, name in ((lm_eval, "score_rows"), (scoring, "score_pieces"), (completion, "_complete")):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    monkeypatch.setattr(corpus, "PART", 60)

    def results(**options):
        asked["calls"] = 0
        content = evaluate_run(opened, task(folder, "all_colours", "stories", "echo", **options)).results.to_dict()
        times = ("wall_s", "tok_s")
        records = [{key: value for key, value in one.items() if key not in times} for one in content["results"]]
        return json.dumps([records, content["protocol"]["requests"], content["warnings"]])

    whole = results(fresh=True)
    total = asked["calls"]
    assert any("did not fit" in warning for warning in json.loads(whole)[2])
    assert results() == whole and asked["calls"] == 0  # counts of what was cut included
    for cell in (opened.folder / "eval" / "cells").iterdir():
        cell.unlink()
    asked["limit"] = total // 2
    with pytest.raises(KeyboardInterrupt):
        results()
    asked["limit"] = None
    assert results() == whole and 0 < asked["calls"] <= total - total // 2
