"""zoo_kernels.bench: what fails, hangs or is interrupted costs nothing else; each piece on a GPU is a process."""

import json
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.test_bench import SHAPE, check_records, parse, script
from zoo.cli import friendly_errors
from zoo_kernels.bench import registry, report, run
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.processes import Watch
from zoo_kernels.bench.record import Row


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

    def start(options, files, job, left):
        assert left == 180 and job.patience == 180 and len(job.names) == 1
        jobs.append(job.names[0])
        children.append(Child(files, job, statuses.get(job.names[0], 0)))
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
        assert run.run(parse(["piece=gqa"])) == [run.RESULTS, "cuda", ("gqa",)]


def test_a_piece_in_a_real_process(tmp_path, capfd):
    (bench,) = run.run_apart(parse(["device=cpu", "dry=true", "piece=ceilings", f"out={tmp_path}"]))
    assert {r.metric for r in bench.records} == {"bandwidth", "rate"} and not bench.errors
    assert read(tmp_path / "ceilings.json")["complete"] and "ceilings: copy 1000000" in capfd.readouterr().out


def test_a_row_that_others_are_compared_with_is_measured_whatever_is_asked_for():
    bench = Bench(parse(["device=cpu", "dry=true", "only=window 8 B"]), "windows")
    bench.run(registry.items_of(bench, "cuda", "windows"))
    assert {r.name for r in bench.records} == {"product", "dense", "window 8"}


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
    bench.run(["one", "two"])
    assert bench.dropped == ["one", "two"]
    assert "no time was left for 2: one; two" in report.table(bench)


def test_tables_stay_short():
    bench = Bench(parse(["device=cpu", "dry=true"]), "linear")
    for number in range(300):
        bench.add(Row(f"row {number}", SHAPE, torch.float32, "ours", "forward"), "rate", number, "TFLOP/s")
    assert len(report.table(bench, "file.json")) < 10_000
    assert "lines more, in file.json" in report.table(bench, "file.json")
