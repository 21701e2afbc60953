"""scripts/bench_kernels.py: every piece for a GPU runs without one; CPU tables, errors, the judge."""

import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import pytest

from zoo.cli import friendly_errors
from zoo_kernels.bench import across, clock, registry, run
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.record import CHECK, REPEATS, Record, Shape
from zoo_kernels.linear import bench_cases as linear_cases
from zoo_kernels.softmax import bench_cases as softmax_cases

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_kernels.py"
sys.path.insert(0, str(SCRIPT.parent))
script = import_module("bench_kernels")
parse = script.parse

CPU_PIECES, CUDA_PIECES = registry.names_of("cpu"), registry.names_of("cuda")
KEYS = {field.name for field in fields(Record)}
SHAPE = Shape(1, 128, 2, 16)


def run_script(*arguments, interpret=True):
    environment = {**os.environ, "PYTHONPATH": "", "TRITON_INTERPRET": "1" if interpret else "0"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def check_records(records):
    assert records
    for record in records:
        assert set(record) == KEYS
        assert all(n > 0 for n in record["shape"].values())
        assert math.isfinite(record["value"])
        times = [record[key] for key in ("milliseconds", "low", "high")]
        assert times == [None] * 3 or (all(map(math.isfinite, times)) and times[1] <= times[0] <= times[2])
        if record["metric"] in (CHECK, REPEATS):
            assert record["reached"], record


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dry")
    done = run_script("device=cpu", "dry=true", "piece=all", "threads=1", f"out={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize("piece", CUDA_PIECES)
def test_every_piece_for_a_gpu_runs_without_one(dry, piece):
    folder, printed = dry
    content = json.loads((folder / f"{piece}.json").read_text(encoding="utf-8"))
    assert content["errors"] == []
    assert content["dropped"] == []
    check_records(content["records"])
    assert {record["piece"] for record in content["records"]} == {piece}
    about = content["environment"]
    assert {"cpu", "threads", "torch", "date", "command", "device"} <= set(about)
    assert about["interpreted"] and not about["interrupted"]
    assert f"== {piece} ==" in printed


def dry_records(dry, piece):
    return json.loads((dry[0] / f"{piece}.json").read_text(encoding="utf-8"))["records"]


@pytest.mark.parametrize(
    "piece", ["contexts_forward", "contexts_training", "few_heads_exact", "softmax", "gqa", "sparse"]
)
def test_exact_attention_has_its_memory_and_its_share_of_the_matrix_rate(dry, piece):
    records = dry_records(dry, piece)
    share = {r["implementation"] for r in records if r["metric"] == "of matrix rate"}
    known = {r["implementation"] for r in records if r["metric"] == "peak" and r["direction"] == "forward"}
    both = {r["implementation"] for r in records if r["metric"] == "peak" and r["direction"] == "forward+backward"}
    assert share <= known | both and {"sdpa"} <= share
    assert ("flex" in share) == (piece != "contexts_training")  # on a CPU it has no backward pass
    assert both >= share - {"flex"} or piece == "contexts_forward"


def test_one_piece_tells_from_which_context_on_lightning_is_faster(dry):
    records = dry_records(dry, "contexts_forward")
    found = {r["implementation"] for r in records if r["shape"]["T"] == 16 and r["milliseconds"]}
    assert found == {"ours, lightning", "ours, softmax", "sdpa", "flex"}
    bench = Bench(replace(parse(["device=cpu", "dry=true"]), scale="full"), "contexts_forward")
    took = {1024: (2, 1, 1), 2048: (2, 3, 1), 4096: (2, 9, 3), 8192: (2, None, None)}
    names = "ours, lightning", "ours, softmax", "sdpa flash"
    for t, each in took.items():
        bench.times["contexts", SHAPE._replace(length=t), "forward"] = {
            n: clock.Timing(x, x, x) for n, x in zip(names, each) if x
        }
    across.tell_leads(bench, [SHAPE._replace(length=t) for t in took], "forward")
    assert [(r.metric, r.value, r.reached) for r in bench.records] == [
        ("from, ours exact", 2048, True),
        ("from, any exact", 4096, None),
    ]
    across.tell_leads(bench, [SHAPE._replace(length=1024)], "forward")
    assert "does not lead ours exact" in bench.notes[0]


@pytest.fixture
def brief(monkeypatch):
    """Single short measurements; FlexAttention would be compiled for ten seconds."""
    monkeypatch.setattr("zoo_kernels.bench.bench.clock_of", lambda device, scale: clock.Clock())
    monkeypatch.setattr(softmax_cases, "flex_peer", lambda *_: {})
    monkeypatch.setitem(linear_cases.CPU_LENGTHS, "quick", [256, 2048, 3072])


def test_the_cpu_tables(brief, tmp_path, capsys):
    file, picture = tmp_path / "a" / "result.json", tmp_path / "plots" / "time.png"
    run.run(parse(["device=cpu", "quick=true", f"out={file}", f"plot={picture}"]), script.draw)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["errors"] == []
    check_records(content["records"])
    assert {record["piece"] for record in content["records"]} == set(CPU_PIECES)
    targets = {(r["piece"], r["metric"]) for r in content["records"] if r["target"]}
    assert targets == {
        ("linear", "slowest over fastest time per token"),
        ("sparse", "over dense"),
        ("decode", "longest over shortest"),
    }
    assert {r["metric"] for r in content["records"]} >= {"over sdpa", "per token", "pairs in listed blocks", "kept"}
    assert picture.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(f"== {piece} ==" in printed for piece in CPU_PIECES)
    assert "targets reached" in printed


def test_a_peer_that_would_take_more_than_the_minutes_is_left_out(brief, capsys):
    asked = ["device=cpu", "quick=true", "piece=linear", "only=lightning B1 T3072", "minutes=0.04"]
    benches = run.run_here(parse(asked))
    assert {r.implementation for r in benches[0].records} == {"ours"}
    assert any("T3072 H8 D64 forward+backward, sdpa is left out" in note for note in benches[0].notes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["piece=nothing"], "piece='nothing' does not exist here: expected all, linear, sparse, decode."),
        (["piece=linear,widths"], "piece='widths'"),
        (["dry=true", "piece=widths,x"], "piece='x'"),
        (["device=potato"], "device=potato cannot be used here"),
        (["device=meta"], "device=meta"),
        (["pieces=all"], "pieces: unknown option; did you mean piece?"),
        (["quick=yes"], "quick=yes: expected true or false"),
        (["minutes=-1"], "minutes=-1: expected a number"),
        (["dry=true", "quick=true"], "quick and plot belong to the CPU tables"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped, friendly_errors():
        run.run(parse(["device=cpu", *arguments]))
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and message in told


def test_the_script_itself_refuses_a_wrong_piece():
    done = run_script("device=cpu", "piece=nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: piece='nothing'") and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_pieces_by_the_first_word_of_their_name():
    group = tuple(name for name in CUDA_PIECES if name.startswith("correctness_"))
    assert len(group) > 2
    assert parse(["device=cpu", "dry=true", "piece=correctness"]).pieces == group
    assert parse(["device=cpu", "dry=true", "piece=sparse,ceilings"]).pieces == ("sparse", "ceilings")
    assert len(CUDA_PIECES) == 17 and CPU_PIECES == ("linear", "sparse", "decode")


def test_both_families_are_checked_and_a_third_needs_only_to_register():
    bench = Bench(parse(["device=cpu", "dry=true"]), "x")
    for name in ("decode", "large"):
        kinds = {str(item).split()[1] for item in registry.items_of(bench, "cuda", f"correctness_{name}")}
        assert {kind.strip(",") for kind in kinds} == {"linear", "softmax"}

    @registry.piece("cuda", "correctness_third", length=3)
    def third(bench, length):
        yield bench.piece, length

    try:
        assert registry.names_of("cuda") == (*CUDA_PIECES, "correctness_third")
        assert list(registry.items_of(bench, "cuda", "correctness_third")) == [("x", 3)]
    finally:
        del registry._pieces["cuda"]["correctness_third"]


def test_help_names_every_option():
    done = run_script("--help")
    assert done.returncode == 0 and all(f"\n    {key}=" in done.stdout for key in script.Given.model_fields)
