"""scripts/bench_kernels.py: every piece for a GPU runs without one; CPU tables, errors, the judge."""

import json
import math
import os
import subprocess
import sys
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.linear_oracle import decay, make_case, make_documents, recurrence
from tests.kernels.softmax_oracle import dense
from zoo.cli import friendly_errors

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "bench_kernels.py"
sys.path.insert(0, str(SCRIPT.parent))

NAMES = "bench", "cpu", "judge", "options", "plain", "report", "run", "timing"
bench_module, cpu, judge, options, plain, report, run, timing = (import_module(f"kernel_bench.{n}") for n in NAMES)
contexts, forms, linear, pace, peers = (
    import_module(f"kernel_bench.{n}") for n in ("contexts", "forms", "linear", "pace", "peers")
)
Bench, Record, Row, Shape = bench_module.Bench, bench_module.Record, bench_module.Row, bench_module.Shape
parse, CPU_PIECES, CUDA_PIECES = options.parse, options.CPU_PIECES, options.CUDA_PIECES
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
        if record["metric"] in (bench_module.CHECK, bench_module.REPEATS):
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
    row = Row("contexts", SHAPE, torch.float32, "ours, lightning", "forward")
    took = {1024: (2, 1, 1), 2048: (2, 3, 1), 4096: (2, 9, 3), 8192: (2, None, None)}
    names = "ours, lightning", "ours, softmax", "sdpa flash"
    times = {t: {n: timing.Timing(x, x, x) for n, x in zip(names, each) if x} for t, each in took.items()}
    contexts._leads(bench, row, times)
    assert [(r.metric, r.value, r.reached) for r in bench.records] == [
        ("from, ours exact", 2048, True),
        ("from, any exact", 4096, None),
    ]
    contexts._leads(bench, row, {1024: times[1024]})
    assert "does not lead ours exact" in bench.notes[0]


@pytest.fixture
def brief(monkeypatch):
    """Single short measurements; FlexAttention would be compiled for ten seconds."""
    monkeypatch.setattr(bench_module, "timer_for", lambda device, scale: timing.DryClock())
    monkeypatch.setattr(cpu, "add_flex", lambda *_: None)
    monkeypatch.setitem(cpu.LENGTHS, "quick", [256, 2048, 3072])


def test_the_cpu_tables(brief, tmp_path, capsys):
    file, picture = tmp_path / "a" / "result.json", tmp_path / "plots" / "time.png"
    run.main(["device=cpu", "quick=true", f"out={file}", f"plot={picture}"])
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["errors"] == []
    check_records(content["records"])
    assert {record["piece"] for record in content["records"]} == set(CPU_PIECES)
    targets = {(r["piece"], r["metric"]) for r in content["records"] if r["target"]}
    assert targets >= {
        ("linear", "slowest over fastest time per token"),
        ("sparse", "over dense"),
        ("decode", "time per token"),
    }
    assert picture.stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert all(f"== {piece} ==" in printed for piece in CPU_PIECES)
    assert "targets reached" in printed


def test_no_call_of_a_peer_is_extrapolated(brief, monkeypatch, capsys):
    monkeypatch.setattr(cpu, "PATIENCE", 0.01)
    benches = run.run_pieces(parse(["device=cpu", "quick=true", "piece=linear", "only=lightning T3072"]))
    assert {r.implementation for r in benches[0].records} == {"ours"}
    assert any("T=3072 is left out" in note for note in benches[0].notes)


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
        run.main(["device=cpu", *arguments])
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
    assert tuple(run.CUDA) == CUDA_PIECES and tuple(run.CPU) == CPU_PIECES


def test_help_names_every_option():
    done = run_script("--help")
    assert done.returncode == 0 and all(f"\n    {key}=" in done.stdout for key in options.Given.model_fields)


def piece_that(action):
    def piece(bench):
        bench.add(Row("good", SHAPE, torch.float32, "ours", "forward"), "rate", 1.0, "x")
        bench.each(["first", "second"], action)

    return piece


def fail(name):
    raise RuntimeError(f"the {name} one\nwith details")


def stop(name):
    raise KeyboardInterrupt


def test_a_piece_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(run.CUDA, "ceilings", piece_that(fail))
    monkeypatch.setitem(run.CUDA, "linear", lambda bench: 1 / 0)
    monkeypatch.setitem(run.CUDA, "widths", piece_that(lambda name: None))
    run.main(["device=cpu", "dry=true", "piece=ceilings,linear,widths", f"out={tmp_path}"])
    broken = json.loads((tmp_path / "ceilings.json").read_text(encoding="utf-8"))
    assert [error["error"] for error in broken["errors"]] == [f"RuntimeError: the {n} one" for n in ("first", "second")]
    assert "in fail" in broken["errors"][0]["traceback"]
    check_records(broken["records"])
    assert "ZeroDivisionError" in (tmp_path / "linear.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "widths.json").read_text(encoding="utf-8"))["errors"] == []
    assert "ERROR second: RuntimeError: the second one" in capsys.readouterr().out


def test_on_a_gpu_each_piece_is_a_process_of_its_own(monkeypatch, capsys):
    started = []

    def start(command, timeout, check):
        assert timeout == 180
        started.append(command[2:])
        if "piece=widths" in command:
            raise subprocess.TimeoutExpired(command, timeout)
        return SimpleNamespace(returncode=int("piece=gqa" in command))

    asked = replace(parse(["device=cpu", "dry=true", "piece=gqa,widths,decode", "minutes=3"]), scale="full")
    monkeypatch.setattr(run, "parse", lambda arguments, usage: asked)
    monkeypatch.setattr(run.subprocess, "run", start)
    with pytest.raises(SystemExit, match="1"):
        run.main([])
    assert [command[-1] for command in started] == ["piece=gqa", "piece=widths", "piece=decode"]
    assert all("minutes=3" in command and len(command) == 4 for command in started)
    told = capsys.readouterr().out
    assert "gqa ended with status 1" in told and "widths did not end within 3 minutes" in told and "decode" not in told
    assert options._out("", always=True) == options.RESULTS and options._out("", always=False) is None


def test_ctrl_c_writes_what_is_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(run.CPU, "sparse", piece_that(stop))
    file = tmp_path / "out.json"
    with pytest.raises(SystemExit) as stopped, friendly_errors():
        run.main(["device=cpu", "piece=sparse,decode", f"out={file}"])
    assert stopped.value.code == 130
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["environment"]["interrupted"] and len(content["records"]) == 1
    assert "== sparse ==" in capsys.readouterr().out


def test_rows_are_dropped_when_time_is_up_and_named():
    bench = Bench(parse(["device=cpu", "dry=true", "minutes=0"]), "linear")
    bench.each(["one", "two"], fail)
    assert bench.dropped == ["one", "two"]
    assert "no time was left for 2: one; two" in report.table(bench)


def test_tables_stay_short():
    bench = Bench(parse(["device=cpu", "dry=true"]), "linear")
    for number in range(300):
        bench.add(Row(f"row {number}", SHAPE, torch.float32, "ours", "forward"), "rate", number, "TFLOP/s")
    assert len(report.table(bench, "file.json")) < 10_000
    assert "lines more, in file.json" in report.table(bench, "file.json")


def test_the_judge_finds_one_bad_block_and_what_is_not_finite():
    torch.manual_seed(0)
    truth = {name: torch.randn(2, 200, 3, 16, dtype=torch.float64) for name in ("output", "grad q")}
    rounded = {name: x.half() for name, x in truth.items()}
    for spoil, expected in ((None, []), (0.05, ["backward"]), (torch.nan, ["backward"])):
        got = {name: x.clone() for name, x in rounded.items()}
        if spoil is not None:
            got["grad q"][1, 130, 2, 5] += spoil
        bench = Bench(parse(["device=cpu", "dry=true"]), "correctness_linear")
        judge.judge(bench, "case", SHAPE, torch.float16, got, rounded, truth)
        assert [r.direction for r in bench.records if not r.reached] == expected
        assert len(bench.errors) == len(expected)
        assert all("grad q" in e["error"] for e in bench.errors)


@pytest.mark.parametrize("kind", ["none", "alibi", "token"])
def test_the_formula_of_linear_attention(kind):
    case = make_case(40, kind)
    x = case.leaves()
    for documents in (None, make_documents([[1, 20, 19], [13, 27]])):
        wanted, state, _ = recurrence(x["q"], x["k"], x["v"], x["log_decay"], x["state"], documents)
        o, last = plain.plain_linear(x["q"], x["k"], x["v"], x["log_decay"], x["state"], documents, scale=0.5)
        torch.testing.assert_close(o, 0.5 * wanted)
        torch.testing.assert_close(last, state)
    assert kind == "none" or decay(kind, 1, 1, 1) is not None


@pytest.mark.parametrize("rule", [{}, {"window": 5, "sink_tokens": 2}, {"window": 0}])
@pytest.mark.parametrize("packed", [False, True])
def test_the_formula_of_softmax_attention(rule, packed):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, h, 8, dtype=torch.float64) for n, h in ((20, 4), (30, 2), (30, 2)))
    documents = make_documents([[4, 15, 11], [29, 1]]) if packed else None
    pairs = plain.visible_pairs(20, 30, q.device, documents=documents, **rule)
    for found, wanted in zip(plain.plain_softmax(q, k, v, pairs), dense(q, k, v, documents=documents, **rule)):
        torch.testing.assert_close(found, wanted)
