"""``piece=first`` of scripts/bench_kernels.py: ends in time whatever happens, goes on where it stopped."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.bench.test_run import context_of, read
from tests.kernels.bench.test_script import SCRIPT, SHAPE, check_records, parse, run_script
from zoo_kernels.bench import results, run
from zoo_kernels.bench.bench import Bench, Found
from zoo_kernels.bench.processes import Watch
from zoo_kernels.bench.registry import names_of
from zoo_kernels.family import families

CHECKS, SPEEDS, WARM = run.CHECK, "speed", run.WARM
SPEED = list(names_of("first"))


@pytest.fixture
def first(tmp_path, monkeypatch):
    """Runs ``piece=first`` with real processes whose steps take a moment; gives the results and what was started.

    ``hang`` names steps that never end, ``die`` those that end their process.
    """
    asked = parse(["device=cpu", "dry=true", "piece=first", f"out={tmp_path / 'first.json'}"])
    monkeypatch.setattr(run, "PATIENCE", 2.0)

    def go(hang=(), die=(), scale="dry", seconds=280.0, takes=0.0):
        started = []

        def work(names, left, pipe):
            for name in names:
                bench = Bench(asked, name, keep=lambda found, name=name: pipe.send((name, found)))
                bench.add(bench.row(bench.piece, SHAPE, "ours", "forward"), "rate", 1.0, "x")
                bench.keep(bench.found)
                time.sleep(600 if name in hang else takes if name in SPEED else 0.0)
                if name in die:
                    os._exit(3)
                bench.run([])

        class Told(Watch):
            def __init__(self, found, _):
                super().__init__(found, work, context_of("fork"))

            def _start(self, names, seconds):
                role = next((kind for kind in (CHECKS, WARM) if names[0].startswith(kind)), SPEEDS)
                started.append((role, list(names), seconds))
                return super()._start(names, seconds)

        options = replace(asked, scale=scale, minutes=seconds / 60)
        return run.run(options, watch=Told), started, asked.out

    return go


def test_all_is_checked_then_timed_in_the_order_of_the_headlines(first, capsys):
    found, started, file = first()
    assert [role for role, _, _ in started] == [CHECKS] * 2 + [SPEEDS] and started[-1][1] == SPEED
    assert all(step["complete"] and len(step["records"]) == 1 for step in read(file)["steps"].values())
    assert set(found.found) == {*run.steps_of_first(parse(["device=cpu", "dry=true", "piece=first"]))}
    assert "are missing" not in capsys.readouterr().out


def test_with_many_cores_what_will_be_timed_is_called_beside_the_checks(first, monkeypatch):
    monkeypatch.setattr(run.os, "cpu_count", lambda: 16)
    _, started, file = first(scale="full")
    assert [names for role, names, _ in started if role == WARM] == [[WARM + name] for name in SPEED]
    checks = [names for role, names, _ in started if role == CHECKS]
    assert len(checks) == 16 - len(SPEED)
    assert sum(len(names) for names in checks) == len({name for names in checks for name in names}) > 16
    assert not any(name.startswith(WARM) for name in read(file)["steps"])


def test_what_hangs_is_ended_and_what_dies_costs_one_step_and_the_next_call_goes_on(first, capsys):
    bad = ["check-linear-0", "lightning-64k", "flash-8k"]
    begin = time.monotonic()
    found, started, _ = first(hang=bad[:2], die=bad[2:])
    assert time.monotonic() - begin < 60
    assert [name for name in found.found if not found.done(name)] == bad
    assert {name: found.found[name].errors[0]["error"] for name in bad} == {
        bad[0]: "was silent for 2 seconds and was ended",
        bad[1]: "was silent for 2 seconds and was ended",
        bad[2]: "its process ended with status 3",
    }
    assert [len(found.found[name].records) for name in bad] == [1, 1, 1]
    assert [names for role, names, _ in started if role == SPEEDS] == [SPEED, SPEED[2:], SPEED[3:]]
    assert "3 of" in (printed := capsys.readouterr().out) and "the same command goes on" in printed
    again, started, _ = first()
    assert all(map(again.done, again.found)) and [names for _, names, _ in started] == [bad[:1], bad[1:]]


def test_little_time_leaves_most_for_the_speeds_and_keeps_what_was_found(first):
    found, started, file = first(seconds=run.MARGIN + 3, takes=1.2)
    assert [role for role, _, _ in started][-1] == SPEEDS and started[0][2] <= 0.3 * 7
    assert found.done(SPEED[0]) and not found.done(SPEED[-1])
    (cut,) = (step for name, step in read(file)["steps"].items() if not step["complete"])
    assert "its time was over" in cut["notes"][0] and len(cut["records"]) == 1


def test_checks_that_the_first_minute_had_no_time_for_come_after_the_speeds(tmp_path, monkeypatch):
    now, started = [0.0], []
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now[0]))

    class Planned(Watch):
        """Steps of a second each on a clock that is made up, of which two take longer."""

        def run(self, jobs, patience, seconds):
            took = [self.done(names, seconds) for names in jobs]
            started.append(([name for names in jobs for name in names], seconds))
            now[0] += min(max(took), seconds)

        def done(self, names, seconds):
            passed = 0.0
            for name in names:
                passed += 35.0 if name in ("check-linear-0", "check-decode-0") else 1.0
                if passed <= seconds:
                    self.results.keep(name, Found(complete=True))
            return passed

    asked = parse(["device=cpu", "dry=true", "piece=first", "minutes=4.6", f"out={tmp_path / 'first.json'}"])
    found = run.run(asked, watch=Planned)
    (checks, first_minute), (speeds, _), (late, left) = started
    assert all(name.startswith(CHECKS) for name in checks) and first_minute == run.CHECKING and speeds == SPEED
    assert late and set(late) < set(checks) and left == 60 * 4.6 - run.MARGIN - 60 - len(SPEED)
    assert all(map(found.done, (*checks, *speeds)))


def test_results_of_other_kernels_do_not_count_nor_does_a_damaged_file(first, monkeypatch):
    file = first()[2]
    assert first()[1] == []
    monkeypatch.setattr(results, "code_hash", lambda: "changed")
    assert first()[1][-1][1] == SPEED
    file.write_text("{", encoding="utf-8")
    assert first()[1][-1][1] == SPEED


def test_every_family_is_checked_forward_and_backward_in_both_half_precisions():
    bench = Bench(replace(parse(["device=cpu", "dry=true"]), scale="full"), "first")
    groups = run.small_checks(bench)
    known = {family.name for family in families().values() if family.calls}
    assert {name.split("-")[1] for name in list(groups)[: len(known) + 1]} == {*known, "decode"}
    checks = [check for group in groups.values() for check in group]
    assert len({str(check) for check in checks}) == len(checks) > 80
    assert {check.size.dtype for check in checks} == {torch.bfloat16, torch.float16}
    steps = {check.call.family for check in checks if check.call.name.startswith("step")}
    assert {check.call.family for check in checks} == known and steps == known & {"linear", "softmax", "delta"}


@pytest.mark.parametrize("piece", ["first,linear", "first"])
def test_it_is_a_piece_alone_and_for_a_gpu(piece):
    arguments = ["device=cpu", f"piece={piece}", *(["dry=true"] if "," in piece else [])]
    with pytest.raises(ValueError, match="piece='first' does not exist here: expected all, "):
        parse(arguments)


@pytest.mark.slow
def test_end_to_end_in_the_interpreter(tmp_path):
    arguments = ["device=cpu", "dry=true", "piece=first", "minutes=9", f"out={tmp_path / 'first.json'}"]
    done = run_script(*arguments)
    assert done.returncode == 0, done.stderr
    steps = read(tmp_path / "first.json")["steps"]
    assert all(step["complete"] and not step["errors"] for step in steps.values()) and set(steps) > set(SPEED)
    check_records([record for step in steps.values() for record in step["records"]])
    assert "== first ==" in done.stdout
    begin = time.monotonic()
    again = run_script(*arguments)
    assert again.returncode == 0 and "steps are missing" not in again.stdout
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_there_and_leaves_no_process(tmp_path):
    command = [sys.executable, str(SCRIPT), "device=cpu", "dry=true", "piece=first", f"out={tmp_path / 'first.json'}"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    for _ in range(3000):
        if (tmp_path / "first.json").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "steps are missing" in out
    assert read(tmp_path / "first.json")["interrupted"]
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # multiprocessing's own helper ends when it sees that its parent has
            os.killpg(process.pid, 0)
            time.sleep(0.1)
