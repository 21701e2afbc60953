"""``piece=first`` of scripts/bench_kernels.py: ends in time whatever happens, goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from tests.kernels.test_bench import SCRIPT, SHAPE, check_records, parse, run_script
from zoo_kernels.bench import processes, run
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.record import Row
from zoo_kernels.bench.registry import names_of

CHECKS, SPEEDS, WARM = processes.CHECK, "speed", processes.WARM
SPEED = list(names_of("first"))


class World:
    """A clock that moves only when somebody sleeps, and processes that take a second a step on it.

    ``hang`` names steps that never end, ``die`` those that end their process; ``seconds`` of a step are otherwise 1.
    """

    def __init__(self, asked, hang=(), die=(), seconds=None):
        self.asked, self.hang, self.die, self.seconds = asked, hang, die, seconds or {}
        self.time, self.started, self.processes = 0.0, [], []

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds
        for process in self.processes:
            process.move(self.time)

    def start(self, asked, files, job, seconds):
        role = next((kind for kind in (CHECKS, WARM) if job.names[0].startswith(kind)), SPEEDS)
        self.started.append((role, list(job.names), round(seconds, 2)))
        self.processes.append(FakeProcess(self, files, job))
        return self.processes[-1]

    def run(self):
        return run.First(self.asked, self.start, self.now, self.sleep).run()


class FakeProcess:
    def __init__(self, world, files, job):
        self.world, self.files, self.names = world, files, list(job.names)
        self.exitcode, self.killed, self.since = None, False, world.time

    def is_alive(self):
        return self.exitcode is None

    def kill(self):
        self.killed, self.exitcode = True, -9

    def move(self, now):
        if self.exitcode is not None:
            return
        if not self.names:
            self.exitcode = 0
            return
        bench = Bench(self.world.asked, self.names[0])
        bench.add(Row(bench.piece, SHAPE, torch.float32, "ours", "forward"), "rate", 1.0, "x")
        self.files.keep(bench, complete=False)
        if bench.piece in self.world.hang or now - self.since < self.world.seconds.get(bench.piece, 1.0):
            return
        if bench.piece in self.world.die:
            self.exitcode = 3
            return
        self.files.keep(bench, complete=True)
        self.names.pop(0)
        self.since = now


@pytest.fixture
def asked(tmp_path):
    return parse(["device=cpu", "dry=true", "piece=first", "seconds=280", f"out={tmp_path}"])


def content_of(asked):
    return json.loads((asked.out / "first.json").read_text(encoding="utf-8"))


def test_all_is_checked_then_timed_in_the_order_of_the_headlines(asked, capsys):
    world = World(asked)
    bench = world.run()
    roles = [role for role, _, _ in world.started]
    assert roles == [CHECKS] * 2 + [SPEEDS]
    assert world.started[-1][1] == SPEED
    assert bench.dropped == [] and content_of(asked)["dropped"] == []
    assert len(content_of(asked)["records"]) == len(processes.small_checks(bench)) + len(SPEED)
    assert "are missing" not in capsys.readouterr().out


def test_with_many_cores_what_will_be_timed_is_called_beside_the_checks(asked, monkeypatch):
    monkeypatch.setattr(run.os, "cpu_count", lambda: 16)
    asked = replace(asked, scale="full", device=torch.device("cpu"))
    world = World(asked)
    world.run()
    warm = [names for role, names, _ in world.started if role == WARM]
    assert warm == [[WARM + name] for name in SPEED]
    checks = [names for role, names, _ in world.started if role == CHECKS]
    assert len(checks) == 16 - len(SPEED)
    assert sum(len(names) for names in checks) == len({name for names in checks for name in names})


def test_what_hangs_is_ended_and_the_time_is_kept(asked, capsys):
    world = World(asked, hang=["check-linear-0", "lightning-64k"])
    bench = world.run()
    assert world.time <= 280
    begun = next(seconds for role, _, seconds in world.started if role == SPEEDS)
    assert begun > 280 - 60 - run.MARGIN - 1
    assert set(bench.dropped) == {"check-linear-0", "lightning-64k"}
    told = {e["name"]: e["error"] for e in bench.errors}
    assert told == {
        "check-linear-0": "took longer than 40 seconds and was ended",
        "lightning-64k": "took longer than 90 seconds and was ended",
    }
    assert "the same command goes on" in capsys.readouterr().out
    assert not any(process.is_alive() for process in world.processes)
    again = World(asked)
    assert again.run().dropped == []
    assert [names for _, names, _ in again.started] == [["check-linear-0"], ["lightning-64k"]]


def test_a_process_that_dies_costs_one_step(asked):
    world = World(asked, die=["flash-8k"])
    bench = world.run()
    assert bench.dropped == ["flash-8k"]
    assert [e["error"] for e in bench.errors] == ["its process ended with status 3"]
    assert world.started[-1][1] == SPEED[SPEED.index("flash-8k") + 1 :]


def test_few_seconds_begin_with_the_checks_and_leave_most_for_the_speeds(asked):
    world = World(replace(asked, seconds=20.0), seconds=dict.fromkeys(SPEED, 6.0))
    bench = world.run()
    assert world.time <= 20 and bench.dropped == SPEED[2:]


def test_checks_that_the_first_minute_had_no_time_for_come_after_the_speeds(asked):
    world = World(asked, seconds=dict.fromkeys(("check-linear-0", "check-decode-0"), 35.0))
    assert world.run().dropped == []
    assert [role for role, _, _ in world.started[-2:]] == [SPEEDS, CHECKS]


def test_results_of_other_kernels_do_not_count(asked, monkeypatch):
    World(asked).run()
    monkeypatch.setattr(processes, "code_hash", lambda: "changed")
    world = World(asked)
    world.run()
    assert world.started[-1][1] == SPEED


def test_a_damaged_file_is_a_missing_step(asked):
    World(asked).run()
    (asked.out / "first" / "decode.json").write_text("{", encoding="utf-8")
    world = World(asked)
    world.run()
    assert [(role, names) for role, names, _ in world.started] == [(SPEEDS, ["decode"])]


def test_every_family_is_checked_forward_and_backward_in_both_half_precisions():
    bench = Bench(replace(parse(["device=cpu", "dry=true"]), scale="full"), "first")
    groups = processes.small_checks(bench)
    assert {name.split("-")[1] for name in list(groups)[:3]} == {"linear", "softmax", "decode"}
    checks = [check for group in groups.values() for check in group]
    assert len({str(check) for check in checks}) == len(checks) > 80
    assert {check.dtype for check in checks} == {torch.bfloat16, torch.float16}
    assert {check.case.name.split()[1] for check in checks if check.case.name.startswith("step")} == {
        "linear",
        "softmax",
    }
    assert run.First(bench.options).checks == tuple(groups)


@pytest.mark.parametrize("piece", ["first,linear", "first"])
def test_it_is_a_piece_alone_and_for_a_gpu(piece):
    arguments = ["device=cpu", f"piece={piece}", *(["dry=true"] if "," in piece else [])]
    with pytest.raises(ValueError, match="piece='first' does not exist here: expected all, "):
        parse(arguments)


@pytest.mark.slow
def test_end_to_end_in_the_interpreter(tmp_path):
    arguments = ["device=cpu", "dry=true", "piece=first", "seconds=500", f"out={tmp_path}"]
    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "first.json").read_text(encoding="utf-8"))
    assert content["errors"] == [] and content["dropped"] == []
    check_records(content["records"])
    assert {r["piece"] for r in content["records"]} >= set(SPEED)
    assert "== first ==" in done.stdout
    begin = time.monotonic()
    again = run_script(*arguments)
    assert again.returncode == 0 and "10 of 10 steps are done already" in again.stdout
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_there_and_leaves_no_process(tmp_path):
    command = [sys.executable, str(SCRIPT), "device=cpu", "dry=true", "piece=first", f"out={tmp_path}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    for _ in range(3000):
        if list((tmp_path / "first").glob("*.json")):
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "steps are missing" in out
    assert content_of(parse(["device=cpu", "dry=true", f"out={tmp_path}"]))["environment"]["interrupted"]
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # multiprocessing's own helper ends when it sees that its parent has
            os.killpg(process.pid, 0)
            time.sleep(0.1)
