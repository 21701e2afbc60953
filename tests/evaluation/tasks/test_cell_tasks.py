"""Tasks made of cells: what they ask, how they go on after a stop, and what they write."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from zoo.config import CONFIGS, ConfigError
from zoo.data import DataError
from zoo.data.recall.cache import sample_cache, samples_digest
from zoo.data.recall.samples import Answer, Sample
from zoo.evaluation.evaluate import evaluate, evaluate_run, file_stem
from zoo.evaluation.results.cell_store import CellStore
from zoo.evaluation.results.records import read_results, read_samples
from zoo.evaluation.results.statistics import wilson
from zoo.evaluation.scoring.answer_records import line_values, make_records
from zoo.evaluation.tasks import cell_task
from zoo.evaluation.tasks.base import Outcome, build_task
from zoo.evaluation.tasks.suite import Suite
from zoo.registry import RECALL_TASKS, TASKS
from zoo.runs.loaded_run import open_run

SMALL = {"lengths": [400, 300], "samples": 3}


def recall(name="niah", **options):
    return build_task({"name": name, "variants": [next(iter(RECALL_TASKS.get(name).VARIANTS))], **SMALL} | options)


def composed(name):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("eval", overrides=[f"task={name}"])
    return OmegaConf.to_container(config.task, resolve=True)


def inverted(content, at):
    """Bytes with one of them inverted."""
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.fixture
def scored(monkeypatch):
    """Numbers of samples of each scored cell; it stops like a Ctrl-C once ``limit`` cells are scored."""
    calls = {"counts": [], "limit": None}
    real = cell_task.score_samples

    def counting(decoder, samples, **options):
        if calls["limit"] is not None and len(calls["counts"]) >= calls["limit"]:
            raise KeyboardInterrupt
        calls["counts"].append(len(samples))
        return real(decoder, samples, **options)

    monkeypatch.setattr(cell_task, "score_samples", counting)
    return calls


def test_every_cell_has_its_records_and_lines(run_folder):
    written = evaluate_run(open_run(run_folder), recall(depths=[0, 1]))
    records, lines = written.records, written.samples
    places = {(r.variant, r.length, r.depth): r.n for r in records}
    cells = {("single", length, depth): 3 for length in (300, 400) for depth in (0, 1)}
    pooled = {("single", length, None): 6 for length in (300, 400)}
    assert places == cells | pooled | {("single/no_context", 0, None): 3, ("single/zero_length", 0, None): 3}
    assert len(lines) == 4 * 3 + 6
    assert {r.metric for r in records} == {"answer_nll", "exact_match"}
    for record in records:
        mine = [
            line_values(line)[record.metric]
            for line in lines
            if (line["variant"], line["length"]) == (record.variant, record.length)
            and (record.depth is None or line["depth"] == record.depth)
        ]
        assert record.value == pytest.approx(sum(mine) / len(mine)) and len(mine) == record.n
        assert record.ci95[0] <= record.value <= record.ci95[1]
    assert read_samples(written.files[0]) == lines
    assert read_results(written.files[0]).model.adapted is False
    assert [file.suffix for file in written.files] == [".json", ".png"]


def test_a_run_trained_on_recall_says_so(tmp_path):
    from tests.evaluation.tiny_run import make_run, save_checkpoint, small_decoder

    folder = make_run(tmp_path)
    known = open_run(folder).trained.tokenizer
    save_checkpoint(folder / "checkpoints" / "last.ckpt", small_decoder(), tokenizer=known, recall={"tasks": ["niah"]})
    content = evaluate_run(open_run(folder), recall()).results.to_dict()
    assert content["model"]["adapted"] is True and content["model"]["recall"] == {"tasks": ["niah"]}


def test_a_stopped_evaluation_goes_on_cell_by_cell(run_folder, scored):
    task = recall("vt")
    whole = evaluate_run(open_run(run_folder), recall("vt", fresh=True)).records
    for cell in (run_folder / "eval" / "cells").iterdir():
        cell.unlink()
    scored["counts"], scored["limit"] = [], 2
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(open_run(run_folder), task)
    assert len(list((run_folder / "eval" / "cells").iterdir())) == 2
    scored["counts"], scored["limit"] = [], None
    again = evaluate_run(open_run(run_folder), task).records
    assert scored["counts"] == [3, 3]  # two of the four cells

    def timeless(records):
        return [r.model_dump(exclude={"wall_s", "tok_s"}) for r in records]

    assert timeless(again) == timeless(whole)


@pytest.mark.slow
def test_finished_cells_are_used_only_for_the_same_questions_and_model(run_folder, scored, tmp_path):
    from tests.evaluation.tiny_run import save_checkpoint, small_decoder

    def cells(seed=0, **options):
        scored["counts"] = []
        evaluate_run(open_run(run_folder), recall("vt", **options), seed)
        return len(scored["counts"])

    assert cells() == 4
    assert cells() == cells(batch_tokens=64) == 0
    assert cells(fresh=True) == 4
    assert cells(lengths=[300, 500]) == 1
    assert cells(choices=3) == 4
    assert cells(seed=1) == 4
    assert cells(haystack="corpus") == 2  # the baselines have no haystack
    damaged = next((run_folder / "eval" / "cells").iterdir())
    damaged.write_bytes(inverted(damaged.read_bytes(), 20))
    assert sum(cells(**options) for options in ({}, {"choices": 3}, {"lengths": [300, 500]}, {"seed": 1})) <= 1
    known = open_run(run_folder).trained.tokenizer
    save_checkpoint(run_folder / "checkpoints" / "last.ckpt", small_decoder(seed=5), tokenizer=known)
    assert cells() == 4


@pytest.mark.slow
def test_samples_come_from_the_cache_and_a_damaged_file_is_made_again(run_folder, monkeypatch):
    first = evaluate_run(open_run(run_folder), recall("passkey", fresh=True))
    files = list((run_folder.parent / "cache" / "recall").iterdir())
    assert len(files) == 4

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(RECALL_TASKS.get("passkey"), "sample", never)
    monkeypatch.setattr(RECALL_TASKS.get("passkey"), "without_context", never)
    assert evaluate_run(open_run(run_folder), recall("passkey", fresh=True)).samples == first.samples
    monkeypatch.undo()
    for damage in (lambda content: content[:-30], lambda content: inverted(content, 200)):
        for file in files:
            file.write_bytes(damage(file.read_bytes()))
        assert evaluate_run(open_run(run_folder), recall("passkey", fresh=True)).samples == first.samples


@pytest.mark.parametrize("error, kept", [(DataError, 0), (KeyboardInterrupt, 1)])
def test_samples_are_kept_when_interrupted_but_not_when_refused(tmp_path, error, kept):
    with pytest.raises(error), sample_cache(tmp_path / "cache") as cached:
        cached("recipe", lambda: [])
        raise error
    assert len(list(tmp_path.rglob("*.npz"))) == kept
    assert (tmp_path / "cache").exists() == bool(kept)


@pytest.mark.slow
def test_no_damage_of_a_file_is_an_error_or_another_sample(tmp_path):
    samples = [Sample(f"id{n}", np.arange(9) * n, (Answer(3, 5, ((1, 2),), ("a",)),), 0.5) for n in range(3)]
    made = []
    with sample_cache(tmp_path) as cached:
        cached("recipe", lambda: made.append(1) or samples)
    (file,) = (tmp_path / "recall").iterdir()
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(inverted(whole, at))
        with sample_cache(tmp_path) as cached:
            assert samples_digest(cached("recipe", lambda: samples)) == samples_digest(samples)
    store = CellStore(tmp_path)
    cell = {"lines": [{"id": "a", "nats": [1.5]}], "seconds": 2.0}
    store.save("key", cell)
    (file,) = (tmp_path / "cells").iterdir()
    whole = file.read_bytes()
    found = []
    for at in range(len(whole)):
        file.write_bytes(inverted(whole, at))
        found.append(store.load("key"))
    assert None in found and all(one in (None, cell) for one in found)


def test_default_lengths_leave_out_what_does_not_fit_and_given_ones_do_not(run_folder):
    from tests.evaluation.tiny_run import save_checkpoint, small_decoder

    known = open_run(run_folder).trained.tokenizer
    save_checkpoint(run_folder / "checkpoints" / "last.ckpt", small_decoder(), tokenizer=known, train_length=256)
    outcome = recall("cwe", lengths=None).evaluate(open_run(run_folder).subject, 0)
    assert {r.length for r in outcome.records} == {0, 512}  # 256 bytes hold no such list
    assert any(note.startswith("three at 256 tokens is left out") for note in outcome.warnings)
    with pytest.raises(DataError, match=r"cwe: facts and questions need \d+ tokens.*length=256.*task\.lengths"):
        recall("cwe", lengths=[256]).evaluate(open_run(run_folder).subject, 0)


def test_given_lengths_leave_out_variants_that_were_not_named(run_folder):
    run = open_run(run_folder)
    outcome = recall("mqar", variants=None, lengths=[256], samples=1).evaluate(run.subject, 0)
    assert {r.variant for r in outcome.records if r.length} == {f"pairs{n}" for n in (4, 8, 16, 32)}
    assert any(note.startswith("pairs64 at 256 tokens is left out: mqar: pairs=64") for note in outcome.warnings)
    for options in ({"variants": ["pairs8", "pairs64"]}, {"variants": None, "lengths": [16, 256]}):
        with pytest.raises(DataError, match=r"need \d+ tokens, more than length=(256|16)"):
            recall("mqar", **{"lengths": [256], "samples": 1} | options).evaluate(run.subject, 0)


def test_lengths_of_a_suite_leave_out_what_does_not_fit(run_folder):
    members = {"mqar": {"variants": ["pairs4", "pairs32"], "samples": 1}}
    (written,) = evaluate(open_run(run_folder), Suite(name="offline", members=members, lengths=[64]))
    assert {r.variant for r in written.records if r.length} == {"pairs4"}
    assert any(note.startswith("pairs32 at 64 tokens is left out") for note in written.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, r"task\.samples=0"),
        ({"choices": 1}, r"task\.choices=1"),
        ({"lengths": []}, r"task\.lengths=\[\]"),
        ({"lengths": [0]}, r"task\.lengths=\[0\]: expected .*a whole number >= 1"),
        ({"depths": [2]}, r"task\.depths=\[2\]: expected .*from 0 to 1"),
        ({"variants": ["double"]}, "niah has no variant 'double': expected one of single"),
        ({"options": {"color": 3}}, "color is not an option of niah: expected one of keys"),
        ({"haystack": "nowhere.txt"}, r"task\.haystack=nowhere\.txt"),
        ({"lengths": [300.5]}, r"task\.lengths=\[300\.5\]"),
        ({"lengths": True}, r"task\.lengths=true"),
        ({"depths": [float("nan")]}, r"task\.depths=\[nan\]"),
        ({"options": 1}, r"task\.options=1: expected options below it"),
        ({"haystack": None}, r"task\.haystack=null: expected text"),
        ({"generate": 1.5}, r"task\.generate=1\.5: expected a whole number"),
        ({"sampels": 2}, r"task\.sampels: unknown option; did you mean task\.samples\?"),
        ({"samples": "abc"}, r"task\.samples=abc"),
        ({"variants": "double"}, "no variant 'double'"),
    ],
)
def test_wrong_options_are_named(run_folder, options, message):
    with pytest.raises((ConfigError, DataError), match=message):
        recall(**options).evaluate(open_run(run_folder).subject, 0)


def test_a_haystack_without_a_text_column_names_no_option_that_is_none(run_folder, tmp_path):
    file = tmp_path / "h.jsonl"
    file.write_text('{"body": "one two"}\n')
    with pytest.raises(DataError, match=r"no column 'text'; columns are body: rename the one to be read") as caught:
        recall("passkey", variants=None, haystack=str(file)).evaluate(open_run(run_folder).subject, 0)
    assert "text_column" not in str(caught.value)


def test_a_single_value_is_a_list_of_one(run_folder):
    task = recall("niah", lengths=300, depths=0.5, variants="single")
    assert (task.lengths, task.depths, task.variants) == ([300], [0.5], ["single"])
    records = task.evaluate(open_run(run_folder).subject, 0).records
    assert [r.depth for r in records if r.length == 300] == [0.5, 0.5]  # one depth has no second record over all


def stem_of(task, run, seed=0):
    """Name of the result file of a task that has found nothing."""
    return file_stem(task, Outcome((task.name,), "", {}, []), run.subject, seed=seed)


def test_results_of_other_questions_have_other_names(run_folder):
    run = open_run(run_folder)
    changes = [
        *({}, {"variants": ["multikey"]}, {"options": {"keys": 3}}, {"lengths": None}, {"depths": [0.5]}),
        *({"samples": 4}, {"choices": 3}, {"generate": 2}, {"baselines": False}),
        *({"haystack": haystack} for haystack in ("corpus", "a/text.txt", "b/text.txt")),
    ]
    stems = [stem_of(recall("niah", **options), run) for options in changes] + [stem_of(recall("niah"), run, 1)]
    assert len(set(stems)) == len(changes) + 1
    questions = [{"path": "a/x.json"}, {"path": "b/x.json"}, {"preset": "squad", "max_records": 9}]
    questions += [{"preset": "squad"}, {"preset": "squad", "revision": "v2"}, {"preset": "squad", "skip_longer": False}]
    stems = [stem_of(build_task({"name": "qa", **options}), run) for options in questions]
    assert len(set(stems)) == len(questions)
    assert all(re.fullmatch(r"[\w.-]+", stem) for stem in stems)


@pytest.mark.parametrize("name", list(RECALL_TASKS))
def test_a_task_as_its_yaml_has_it_needs_no_more_than_its_name(run_folder, name):
    run, options = open_run(run_folder), composed(name)
    assert stem_of(build_task(options), run) == name
    variant = next(iter(RECALL_TASKS.get(name).VARIANTS))
    narrow = build_task(options | {"variants": [variant], "lengths": [256]})
    assert stem_of(narrow, run) == f"{name}-{variant}-lengths256"


def test_runs_trained_on_recall_are_asked_at_once_twice_and_four_times_their_length(run_folder):
    run = open_run(run_folder)
    assert recall(lengths=None).all_lengths(run.subject) == [256]
    trained = replace(run.trained, train_length=128, recall={"share": 1})
    assert recall(lengths=None).all_lengths(replace(run, trained=trained).subject) == [128, 256, 512]


def test_a_question_asked_at_several_depths_is_one_unit(run_folder):
    lines = [{"id": str(i // 3), "nats": [float(i)], "tokens": [1], "correct": [True]} for i in range(12)]
    place = {"task": "qa", "variant": "x", "length": 300, "depth": None}
    pooled = {r.metric: r for r in make_records(place, lines, 0)}
    assert pooled["answer_nll"].n == 4 and pooled["answer_nll"].value == pytest.approx(5.5)
    assert pooled["exact_match"].ci95 == pytest.approx(wilson(4, 4))


def test_a_checkpoint_that_changes_while_it_is_read_is_refused(run_folder, monkeypatch):
    from zoo.model.checkpoint import CheckpointError
    from zoo.runs import loaded_run as module

    real = module.load

    def replaced(file, **options):
        decoder = real(file, **options)
        file.write_bytes(file.read_bytes() + b"more")
        return decoder

    monkeypatch.setattr(module, "load", replaced)
    with pytest.raises(CheckpointError, match="was replaced while it was read"):
        open_run(run_folder)


def test_generation_adds_texts_and_their_scores(run_folder):
    outcome = recall("kv", generate=4, lengths=[500], baselines=False).evaluate(open_run(run_folder).subject, 0)
    generated = [r for r in outcome.records if r.variant.endswith("/generated")]
    assert {r.metric for r in generated} == {"exact_match", "f1", "contains"}
    assert all(len(line["generated"]) == len(line["references"]) == 1 for line in outcome.samples)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("lm_eval", "hub", "offline")])
def test_every_yaml_builds_its_task(name):
    options = composed(name)
    task = build_task(options)
    fields = {field for field in vars(task) if field != "name"}
    assert fields == set(options) - {"name"}


def test_the_suite_hands_common_options_to_its_tasks():
    suite = build_task(composed("offline") | {"lengths": [300], "samples": 2, "fresh": True})
    assert isinstance(suite, Suite)
    tasks = {type(task).__name__ + getattr(task, "name", ""): task for _, task in suite.tasks()}
    assert len(tasks) == len(suite.members) == 11
    for task in tasks.values():
        assert task.fresh
        if hasattr(task, "samples"):
            assert (task.lengths, task.samples) == ([300], 2)
    assert tasks["PerplexityContextTask"].lengths is None


@pytest.mark.slow
def test_a_suite_is_evaluated_task_by_task(run_folder):
    members = {name: {"variants": None, **SMALL, "samples": 1} for name in ("passkey", "vt")} | {"kv": None}
    written = list(evaluate(open_run(run_folder), Suite(name="offline", members=members)))
    assert [one.stem for one in written] == [
        "passkey-lengths300_400-depthsnull-samples1",
        "vt-lengths300_400-samples1",
    ]
    assert json.loads(written[0].files[0].read_text())["protocol"]["lengths"] == [300, 400]


def test_a_suite_goes_on_without_what_the_data_do_not_allow(run_folder):
    members = {"perplexity_position": {"length": 10_000}, "passkey": SMALL}
    left_out, written = evaluate(open_run(run_folder), Suite(name="offline", members=members))
    assert left_out.task == "perplexity_position" and "10000 tokens" in left_out.reason.replace(",", "")
    assert written.title == "passkey"
