"""scripts/bench_kernels.py: every piece for a GPU runs without one; CPU tables, errors, the judge."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from tests.kernels.toy_family import TOY
from zoo.cli import friendly_errors
from zoo_kernels import family
from zoo_kernels.bench import across, clock, registry, run
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.record import CHECK, REPEATS, Record, Shape
from zoo_kernels.softmax import bench_cases as softmax_cases
from zoo_kernels.tools.calls import every_call

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "bench_kernels.py"
sys.path.insert(0, str(SCRIPT.parent))
script = import_module("bench_kernels")

CPU_PIECES, CUDA_PIECES = registry.names_of("cpu"), registry.names_of("cuda")
KEYS = set(Record._fields)
SHAPE = Shape(1, 128, 2, 16)


def parse(arguments):
    return script.parse(arguments)[0]


def run_script(*arguments, interpret=True):
    environment = {**os.environ, "PYTHONPATH": "", "TRITON_INTERPRET": "1" if interpret else "0"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def check_records(records):
    assert records
    for record in records:
        assert set(record) == KEYS
        assert Shape(**record["shape"]).numbers > 0
        assert math.isfinite(record["value"])
        time = record["timing"]
        assert time is None or 0 < time["low"] <= time["median"] <= time["high"] < math.inf
        if record["metric"] in (CHECK, REPEATS):
            assert record["reached"], record


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    file = tmp_path_factory.mktemp("dry") / "dry.json"
    done = run_script("device=cpu", "dry=true", "piece=all", "threads=1", f"out={file}")
    assert done.returncode == 0, done.stderr
    return read(file), done.stdout


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("piece", CUDA_PIECES)
def test_every_piece_for_a_gpu_runs_without_one(dry, piece):
    content, printed = dry
    step = content["steps"][piece]
    assert step["errors"] == [] and step["dropped"] == [] and step["complete"]
    check_records(step["records"])
    assert {record["piece"] for record in step["records"]} == {piece}
    assert {"cpu", "threads", "torch", "device"} <= set(content["environment"])
    assert content["environment"]["interpreted"] and not content["interrupted"]
    assert f"== {piece} ==" in printed


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece", ["contexts_forward", "contexts_training", "few_heads_exact", "softmax", "gqa", "sparse"]
)
def test_exact_attention_has_its_memory_and_its_share_of_the_matrix_rate(dry, piece):
    records = dry[0]["steps"][piece]["records"]
    share = {r["implementation"] for r in records if r["metric"] == "of matrix rate"}
    known = {r["implementation"] for r in records if r["metric"] == "peak" and r["direction"] == "forward"}
    both = {r["implementation"] for r in records if r["metric"] == "peak" and r["direction"] == "forward+backward"}
    assert share <= known | both and {"sdpa"} <= share
    assert ("flex" in share) == (piece != "contexts_training")  # on a CPU it has no backward pass
    assert both >= share - {"flex"} or piece == "contexts_forward"


@pytest.mark.slow
def test_lightning_is_compared_with_exact_attention_at_every_context(dry):
    records = dry[0]["steps"]["contexts_forward"]["records"]
    timed = (r for r in records if r["shape"]["length"] == 16 and r["timing"])
    times = {r["implementation"]: r["timing"]["median"] for r in timed}
    assert times.keys() == {"lightning", "softmax", "sdpa", "flex"}
    (over,) = (r["value"] for r in records if r["metric"] == "over all exact" and r["shape"]["length"] == 16)
    lightning = times.pop("lightning")
    assert over == pytest.approx(min(times.values()) / lightning)


@pytest.fixture
def brief(monkeypatch):
    """Single short measurements; FlexAttention would be compiled for ten seconds."""
    monkeypatch.setitem(clock.CLOCKS, "quick", clock.CLOCKS["dry"])
    monkeypatch.setattr(softmax_cases, "flex_peer", lambda *_: {})
    monkeypatch.setitem(across.LENGTHS, "quick", [512, 2048, 3072])


def test_the_cpu_tables(brief, tmp_path, capsys):
    file, picture, page = tmp_path / "a" / "result.json", tmp_path / "plots" / "time.png", tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nbehind\n", encoding="utf-8")
    script.main(["device=cpu", "quick=true", f"out={file}", f"plot={picture}", f"table={page}"])
    steps = read(file)["steps"]
    assert set(steps) == set(CPU_PIECES) and not any(step["errors"] for step in steps.values())
    records = [record for step in steps.values() for record in step["records"]]
    check_records(records)
    targets = {(r["implementation"], r["metric"]) for r in records if r["target"] and r["piece"] == "linear"}
    rules = "gated delta rule", "KDA"
    assert targets == {
        ("lightning", "over sdpa"),
        *((rule, metric) for rule in rules for metric in ("time over lightning", "over sdpa", "over transformers")),
        *((who, "slowest over fastest time per token") for who in ("lightning", *rules, across.GLA)),
    }
    assert {(r["piece"], r["metric"]) for r in records if r["target"] and r["piece"] != "linear"} == {
        ("sparse", "over dense"),
        ("decode", "longest over shortest"),
    }
    assert {r["metric"] for r in records} >= {"over conv1d", "pairs in listed blocks", "kept"}
    assert picture.stat().st_size > 10_000
    printed, told = capsys.readouterr().out, page.read_text(encoding="utf-8")
    assert all(f"== {piece} ==" in printed for piece in CPU_PIECES)
    assert "targets reached" in printed
    assert told.startswith("before\n<!-- measured -->\n\n### Forward and backward\n\n|  | 512 | 2k | 3k |\n")
    assert told.endswith("|\n\n<!-- /measured -->\nbehind\n") and "old" not in told
    rows = [line for line in told.splitlines() if line.startswith("| gated delta rule: over transformers (x) |")]
    assert len(rows) == 1 and ">= 2.5" in rows[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["piece=nothing"], "piece='nothing' does not exist here: expected all, linear, sparse, decode, convolution."),
        (["piece=linear,widths"], "piece='widths'"),
        (["dry=true", "piece=widths,x"], "piece='x'"),
        (["device=potato"], "device=potato cannot be used here"),
        (["device=meta"], "device=meta"),
        (["pieces=all"], "pieces: unknown option; did you mean piece?"),
        (["quick=yes"], "quick=yes: expected true or false"),
        (["minutes=-1"], "minutes=-1: expected a number"),
        (["dry=true", "quick=true"], "quick, plot and table belong to the CPU"),
        (["table=nothing.md"], "table=nothing.md: expected a file of Markdown with <!-- measured --> and"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped, friendly_errors():
        run.run(parse(["device=cpu", *arguments]))
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and message in told


@pytest.mark.slow
def test_the_script_itself_refuses_a_wrong_piece():
    done = run_script("device=cpu", "piece=nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: piece='nothing'") and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_pieces_by_the_first_word_of_their_name():
    group = tuple(name for name in CUDA_PIECES if name.startswith("correctness_"))
    assert len(group) > 2
    assert parse(["device=cpu", "dry=true", "piece=correctness"]).pieces == group == CUDA_PIECES[: len(group)]
    assert parse(["device=cpu", "dry=true", "piece=sparse,ceilings"]).pieces == ("sparse", "ceilings")
    assert len(set(CUDA_PIECES)) == len(CUDA_PIECES) and {"delta", "convolution"} <= set(CUDA_PIECES)
    assert CPU_PIECES == ("linear", "sparse", "decode", "convolution")


def test_every_call_of_every_family_is_checked_and_a_third_needs_only_to_register():
    bench = Bench(replace(parse(["device=cpu", "dry=true"]), scale="full"), "x")
    found = set()
    for name in (name for name in CUDA_PIECES if name.startswith(registry.CHECKED)):
        found |= {(item.call.family, item.call.name) for item in registry.items_of(bench, "cuda", name)}
    assert found >= {(call.family, call.name) for harder in (False, True) for call in every_call(harder)}
    large = {item.call.family for item in registry.items_of(bench, "cuda", "correctness_large")}
    assert large == {"linear", "delta", "softmax"}
    family.register(TOY)
    try:
        assert registry.names_of("cuda")[: len(CUDA_PIECES) + 1].count("correctness_toy") == 1
        items = list(registry.items_of(bench, "cuda", "correctness_toy"))
        assert {item.call.name for item in items} == {"plain", "untold"}
    finally:
        del family._families["toy"], registry._pieces["cuda"]["correctness_toy"]


@pytest.mark.slow
def test_help_names_every_option():
    done = run_script("--help")
    assert done.returncode == 0 and all(f"\n    {key}=" in done.stdout for key in script.Given.model_fields)
