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

from zoo.cli import friendly_errors
from zoo_kernels.bench import across, clock, registry, report, run
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.check import Check, RoundedProducts, judge
from zoo_kernels.bench.options import RESULTS
from zoo_kernels.bench.processes import Files, Watch
from zoo_kernels.bench.record import CHECK, REPEATS, Record, Row, Shape
from zoo_kernels.linear import cases as linear_cases
from zoo_kernels.softmax import cases as softmax_cases

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
    for module in (softmax_cases, across):
        monkeypatch.setattr(module, "flex_peer", lambda *_: {})
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


def test_no_call_of_a_peer_is_extrapolated(brief, monkeypatch, capsys):
    monkeypatch.setattr(linear_cases, "PATIENCE", 0.01)
    benches = run.run_here(parse(["device=cpu", "quick=true", "piece=linear", "only=lightning B1 T3072"]))
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


class Act(str):
    """An item that calls a function with its name."""

    def run(self, bench):
        self.action(self)


def piece_that(action, *names):
    def make(bench):
        bench.add(Row("good", SHAPE, torch.float32, "ours", "forward"), "rate", 1.0, "x")
        for name in names or ("first", "second"):
            item = Act(name)
            item.action = action
            yield item

    return [make]


def fail(name):
    raise RuntimeError(f"the {name} one\nwith details")


def stop(name):
    raise KeyboardInterrupt


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def test_a_piece_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    pieces = registry._pieces["cuda"]
    monkeypatch.setitem(pieces, "ceilings", piece_that(fail))
    monkeypatch.setitem(pieces, "linear", [lambda bench: 1 / 0])
    monkeypatch.setitem(pieces, "widths", piece_that(lambda name: None))
    run.run(parse(["device=cpu", "dry=true", "piece=ceilings,linear,widths", f"out={tmp_path}"]))
    broken = read(tmp_path / "ceilings.json")
    assert [error["error"] for error in broken["errors"]] == [f"RuntimeError: the {n} one" for n in ("first", "second")]
    assert "in fail" in broken["errors"][0]["traceback"]
    check_records(broken["records"])
    assert "ZeroDivisionError" in (tmp_path / "linear.json").read_text(encoding="utf-8")
    assert read(tmp_path / "widths.json")["errors"] == []
    assert "ERROR second: RuntimeError: the second one" in capsys.readouterr().out


class Child:
    """A process that has written what it found, and has ended with a status or never does."""

    def __init__(self, files, job, status):
        bench = Bench(parse(["device=cpu", "dry=true"]), job.names[0])
        bench.add(Row("good", SHAPE, torch.float32, "ours", "forward"), "rate", 1.0, "x")
        files.keep(bench, complete=status == 0)
        self.exitcode, self.killed = status, False

    def is_alive(self):
        if self.exitcode == "ctrl-c":
            raise KeyboardInterrupt
        return self.exitcode is None and not self.killed

    def kill(self):
        self.killed = True


def in_processes(tmp_path, statuses, pieces):
    """Run pieces as on a GPU, in processes of which only the status is known."""
    asked = parse(["device=cpu", "dry=true", f"piece={pieces}", "minutes=3", f"out={tmp_path}"])
    seconds, jobs, children = [0.0], [], []

    def start(options, job, left):
        assert left == 180 and job.patience == 180 and len(job.names) == 1
        jobs.append(job.names[0])
        children.append(Child(Files(tmp_path, asked), job, statuses.get(job.names[0], 0)))
        return children[-1]

    def sleep(x):
        seconds[0] += 30

    def watch(options, files):
        return Watch(options, files, start, lambda: seconds[0], sleep)

    return lambda: run.run_apart(asked, watch), jobs, children


def test_on_a_gpu_each_piece_is_a_process_of_its_own(tmp_path, capsys):
    go, jobs, children = in_processes(tmp_path, {"gqa": 1, "widths": None}, "gqa,widths,decode")
    with pytest.raises(SystemExit, match="1"):
        go()
    assert jobs == ["gqa", "widths", "decode"] and [child.killed for child in children] == [False, True, False]
    told = capsys.readouterr().out
    assert "ERROR gqa: its process ended with status 1" in told and "widths was cut off: its time was over" in told
    assert "not run to their end: gqa, widths\n" in told and "good float32" in told
    assert read(tmp_path / "gqa.json")["errors"] and len(read(tmp_path / "widths.json")["records"]) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "choose_device", lambda name: SimpleNamespace(type="cuda"))
        patch.setattr(run, "run_apart", lambda options: [options.out, options.suite, options.pieces])
        assert run.run(parse(["piece=gqa"])) == [RESULTS, "cuda", ("gqa",)]


def test_a_piece_in_a_real_process(tmp_path, capfd):
    (bench,) = run.run_apart(parse(["device=cpu", "dry=true", "piece=ceilings", f"out={tmp_path}"]))
    assert {r.metric for r in bench.records} == {"bandwidth", "rate"} and not bench.errors
    assert read(tmp_path / "ceilings.json")["complete"] and "ceilings: copy 1000000" in capfd.readouterr().out


def test_a_row_that_others_are_compared_with_is_measured_whatever_is_asked_for():
    bench = Bench(parse(["device=cpu", "dry=true", "only=window 8 B"]), "windows")
    bench.each(registry.items_of(bench, "cuda", "windows"), lambda item: bench.note(str(item)))
    assert [note.partition(" B1")[0] for note in bench.notes] == ["dense", "window 8"]


def test_ctrl_c_writes_what_is_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(registry._pieces["cpu"], "sparse", piece_that(stop))
    file = tmp_path / "out.json"
    with pytest.raises(SystemExit) as stopped, friendly_errors():
        run.run(parse(["device=cpu", "piece=sparse,decode", f"out={file}"]))
    assert stopped.value.code == 130
    content = read(file)
    assert content["environment"]["interrupted"] and len(content["records"]) == 1
    go, _, children = in_processes(tmp_path, {"gqa": "ctrl-c"}, "gqa,decode")
    with pytest.raises(KeyboardInterrupt):
        go()
    assert read(tmp_path / "gqa.json")["environment"]["interrupted"] and children[0].killed
    told = capsys.readouterr().out
    assert "== sparse ==" in told and "== gqa ==" in told and "decode" not in told


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
        judge(bench, "case", SHAPE, torch.float16, got, rounded, truth)
        assert [r.direction for r in bench.records if not r.reached] == expected
        assert len(bench.errors) == len(expected)
        assert all("grad q" in e["error"] for e in bench.errors)


def test_plain_low_precision_rounds_products_in_both_directions():
    a, b = torch.randn(2, 3, 8, 8, requires_grad=True).unbind()
    with RoundedProducts(torch.bfloat16):
        found = a @ b
        (grad,) = torch.autograd.grad(found.sum(), a)
    low = a.bfloat16() @ b.bfloat16()
    assert found.dtype == torch.float32 and torch.equal(found, low.float())
    assert torch.equal(grad, (torch.ones_like(low) @ b.bfloat16().mT).float())
    assert not torch.equal(a @ b, found)


@pytest.mark.parametrize("graph", [False, True])
def test_a_check_finds_a_wrong_gradient_and_a_wrong_repeat(graph):
    calls = []

    def triple(x, backend):
        calls.append(backend)
        wrong = backend == "triton" and not graph
        return torch.where(x > 0, 3 * x, 3 * x.detach()) if wrong else 3 * x + (backend == "triton") * len(calls)

    sizes = {"x": (1, 70, 2, 4)} | ({} if graph else {"to output": (1, 70, 2, 4)})
    bench = Bench(parse(["device=cpu", "dry=true"]), "correctness_linear")
    case = Check("case", Shape(1, 70, 2, 4), triple, sizes, graph=graph)
    case.run(bench)
    assert [r.direction for r in bench.records if not r.reached] == (["forward"] if graph else ["backward"])
    replace(case, repeats=2).run(bench)
    assert bench.records[-1].metric == REPEATS and bench.records[-1].value == graph
