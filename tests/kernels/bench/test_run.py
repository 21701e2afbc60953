"""zoo_kernels.bench: what fails, hangs or is interrupted costs nothing else; each piece on a GPU is a process."""

import time
from dataclasses import replace
from multiprocessing import get_context
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.bench.test_script import SHAPE, check_records, parse, read
from zoo.cli import friendly_errors
from zoo_kernels.bench import registry, report, run
from zoo_kernels.bench.bench import Bench, Found
from zoo_kernels.bench.processes import Watch

context_of = get_context  # forked processes begin at once, and know what a test has changed


class Act(str):
    """An item that calls a function with its name."""

    def run(self, bench):
        self.action(self)


def piece_that(action, *names):
    def make(bench):
        bench.add(bench.row("good", SHAPE, "ours", "forward"), "rate", 1.0, "x")
        for name in names or ("first", "second"):
            item = Act(name)
            item.action = action
            yield item

    return [make]


def fail(name):
    raise RuntimeError(f"the {name} one\nwith details")


def stop(name):
    raise KeyboardInterrupt


def test_a_piece_that_fails_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    pieces = registry._pieces["cuda"]
    monkeypatch.setitem(pieces, "ceilings", piece_that(fail))
    monkeypatch.setitem(pieces, "linear", [lambda bench: 1 / 0])
    monkeypatch.setitem(pieces, "widths", piece_that(lambda name: None))
    run.run(parse(["device=cpu", "dry=true", "piece=ceilings,linear,widths", f"out={tmp_path / 'out.json'}"]))
    steps = read(tmp_path / "out.json")["steps"]
    errors = steps["ceilings"]["errors"]
    assert [error["error"] for error in errors] == [f"RuntimeError: the {n} one" for n in ("first", "second")]
    assert "in fail" in errors[0]["traceback"]
    check_records(steps["ceilings"]["records"])
    assert "ZeroDivisionError" in steps["linear"]["errors"][0]["error"] and steps["widths"]["errors"] == []
    assert "ERROR second: RuntimeError: the second one" in capsys.readouterr().out


class Forked(Watch):
    """Forked processes; they know the pieces that a test has changed."""

    def __init__(self, results, work):
        super().__init__(results, work, context_of("fork"))


def test_a_process_without_more_time_is_no_error():
    def work(names, seconds, pipe):
        pipe.send((names[0], Found(dropped=["row"])))

    results = Real(parse(["device=cpu", "dry=true"]))
    Forked(results, work).run([["a", "b"]], patience=60.0, seconds=60.0)
    assert list(results.found) == ["a"] and not results.done("a")
    assert results.found["a"].dropped == ["row"] and results.found["a"].errors == []


def on_a_gpu(monkeypatch, tmp_path, piece, **actions):
    """Options of a run in processes, as on a GPU; an action is what an item of the piece of that name does."""
    for name, action in actions.items():
        monkeypatch.setitem(registry._pieces["cuda"], name, piece_that(action, "only"))
    monkeypatch.setattr(run, "Results", lambda options: Real(replace(options, device=torch.device("cpu"))))
    monkeypatch.setattr(run, "work", lambda options, *rest: work(replace(options, device=torch.device("cpu")), *rest))
    asked = parse(["device=cpu", "dry=true", f"piece={piece}", "minutes=0.05", f"out={tmp_path / 'out.json'}"])
    return replace(asked, device=SimpleNamespace(type="cuda"))


Real, work = run.Results, run.work


def test_on_a_gpu_each_piece_is_a_process_of_its_own(monkeypatch, tmp_path, capfd):
    dies, hangs = lambda name: run.os._exit(7), lambda name: time.sleep(600)
    asked = on_a_gpu(monkeypatch, tmp_path, "gqa,widths,decode", gqa=dies, widths=hangs, decode=lambda name: None)
    with pytest.raises(SystemExit, match="1"):
        run.run(asked, watch=Forked)
    told, steps = capfd.readouterr().out, read(tmp_path / "out.json")["steps"]
    assert "ERROR gqa: its process ended with status 7" in told and "2 of 3 steps are missing: gqa, widths" in told
    assert "note: widths was cut off: its time was over" in told
    assert "good float32" in told and steps["gqa"]["errors"] and not steps["widths"]["complete"]
    assert steps["decode"]["complete"] and len(steps["decode"]["records"]) == 1


@pytest.mark.slow
def test_a_piece_in_a_real_process(monkeypatch, tmp_path, capfd):
    asked = replace(on_a_gpu(monkeypatch, tmp_path, "ceilings"), minutes=1.0)
    monkeypatch.setattr(run, "work", work)
    results = Real(replace(asked, device=torch.device("cpu")))
    watch = Watch(results, run.partial(work, replace(asked, device=torch.device("cpu"))))
    watch.run([["ceilings"]], 60.0, 60.0)
    found = results.found["ceilings"]
    assert {r.metric for r in found.records} == {"bandwidth", "rate"} and not found.errors and found.complete
    assert "ceilings: copy 1000000" in capfd.readouterr().out


def test_a_row_that_others_are_compared_with_is_measured_whatever_is_asked_for():
    bench = Bench(parse(["device=cpu", "dry=true", "only=window 8 B"]), "windows")
    bench.run(registry.items_of(bench, "cuda", "windows"))
    assert {r.name for r in bench.found.records} == {"product", "dense", "window 8"}


def test_ctrl_c_writes_what_is_there(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(registry._pieces["cpu"], "sparse", piece_that(stop))
    file = tmp_path / "cpu.json"
    with pytest.raises(SystemExit) as stopped, friendly_errors():
        run.run(parse(["device=cpu", "piece=sparse,decode", f"out={file}"]))
    assert stopped.value.code == 130
    assert read(file)["interrupted"] and len(read(file)["steps"]["sparse"]["records"]) == 1
    told = capsys.readouterr().out
    assert "== sparse ==" in told and "== decode ==" not in told


def test_rows_are_dropped_when_time_is_up_and_named():
    bench = Bench(parse(["device=cpu", "dry=true"]), "linear", seconds=0.0)
    bench.run(["one", "two"])
    assert bench.found.dropped == ["one", "two"] and not bench.found.complete
    assert "no time was left for 2: one; two" in report.table("linear", [bench.found])


def test_tables_stay_short():
    bench = Bench(parse(["device=cpu", "dry=true"]), "linear")
    for number in range(300):
        bench.add(bench.row(f"row {number}", SHAPE, "ours", "forward"), "rate", number, "TFLOP/s")
    assert len(report.table("linear", [bench.found], "file.json")) < 10_000
    assert "lines more, in file.json" in report.table("linear", [bench.found], "file.json")
