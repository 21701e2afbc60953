"""A sweep runs what is left, whatever stopped it before. The programs are stand-ins, but for the last test."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock

from tests.sweeps.fake_programs import driver_command, read_calls, write_programs
from tests.tiers import in_ci
from tests.training.conftest import write_text
from zoo.config import ConfigError
from zoo.evaluation.results.records import read_results
from zoo.files import read_metrics
from zoo.options.command import check_command
from zoo.options.composing import compose_config
from zoo.runs.run_folder import RunFolder
from zoo.sweeps import compose as plan
from zoo.sweeps import driver as sweep
from zoo.sweeps import evaluations, runs
from zoo.sweeps.driver import run_sweep
from zoo.sweeps.ledger import read_ledger
from zoo.sweeps.page.pages import without_measured
from zoo.sweeps.page.write import write_report

ROOT = Path(__file__).resolve().parents[2]
WAIT = 300  # seconds until something that must happen has not, on a machine that has much else to do


@pytest.fixture
def programs(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PROGRAMS", write_programs(tmp_path))
    monkeypatch.setattr(sweep, "PAUSE", 0.02)
    monkeypatch.setattr(sweep, "prepare", lambda plan: plan)  # patterns of stand-ins are no attentions
    for module in (plan, evaluations):
        monkeypatch.setattr(module, "compose_config", lambda program, given=(): composed(program, tuple(given)))
    return tmp_path


@cache
def composed(program, given):
    """Configurations of all tests of this file: each takes a good part of a second."""
    return compose_config(program, given)


def arguments(programs, patterns, *more, seeds="0"):
    """Of a sweep whose stand-ins are told by their pattern what to do; its folder is programs/sweep."""
    return [
        *("-m", "sweep=hybrid_ratio", f"schedule.pattern={','.join(patterns)}", f"seed={seeds}"),
        "sweep.tasks=[perplexity,mqar]",
        *("experiment=tiny", "trainer.accelerator=cpu", "match=none", f"hydra.sweep.dir={programs / 'sweep'}", *more),
    ]


def statuses(programs):
    entries = read_ledger(programs / "sweep").values()
    return {f"{entry.arm}/{entry.seed}": entry.status for entry in entries}


def names(programs):
    return [call["what"] for call in read_calls(programs)]


def results(programs):
    """Every file of results, by its place in the sweep."""
    arms = programs / "sweep" / "arms"
    return {file.relative_to(arms).as_posix(): file.read_text() for file in arms.glob("*/seed-?/eval/*.json")}


def wait_for(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def when(condition, action):
    """Do something once a condition holds, while this thread runs the sweep."""
    thread = threading.Thread(target=lambda: (wait_for(condition), action()), daemon=True)
    thread.start()
    return thread


def test_every_run_is_trained_and_evaluated_once(programs, capsys):
    given = arguments(programs, ["a", "bb"], seeds="0,3")
    assert run_sweep(given) == 0
    assert names(programs) == ["train", "perplexity", "mqar"] * 4
    trained = [call["arguments"] for call in read_calls(programs) if call["what"] == "train"]
    order = [next(a.partition("=")[2] for a in call if a.startswith("hydra.run.dir=")) for call in trained]
    assert order == [str(programs / f"sweep/arms/{arm}/seed-{seed}") for seed in (0, 3) for arm in ("a", "bb")]
    assert all({"experiment=tiny", "trainer.accelerator=cpu"} <= set(call) for call in trained)
    assert all("device=cpu" in call["arguments"] for call in read_calls(programs) if call["what"] == "mqar")
    assert statuses(programs) == dict.fromkeys(("a/0", "bb/0", "a/3", "bb/3"), "finished")
    described = json.loads((programs / "sweep/sweep.json").read_text())
    assert (described["schema"], described["seeds"], described["tasks"]) == (
        "zoo-sweep/1",
        [0, 3],
        ["perplexity", "mqar"],
    )
    assert {run["key"] for run in described["runs"]} == set(read_ledger(programs / "sweep"))
    out = capsys.readouterr().out
    assert "[4/4] bb seed 3: finished" in out and "1.1500 ± 0.2121" in out
    assert f"python scripts/report.py {programs / 'sweep'}" in out
    before = results(programs)
    assert run_sweep(given) == 0 and len(names(programs)) == 12 and results(programs) == before


def test_what_is_new_alone_is_done(programs):
    run_sweep(arguments(programs, ["a"]))
    assert run_sweep(arguments(programs, ["a", "b"], "sweep.tasks=[perplexity,mqar,niah]", seeds="0")) == 0
    assert names(programs) == ["train", "perplexity", "mqar", "niah", "train", "perplexity", "mqar", "niah"]
    assert statuses(programs) == {
        "a/0": "finished",
        "b/0": "finished",
    }


@pytest.mark.slow
def test_failures_are_kept_with_their_reason_and_tried_again(programs, capsys):
    given = arguments(programs, ["fails", "raises", "dies", "a"])
    assert run_sweep(given) == 1
    reasons = {entry.arm: entry.reason for entry in read_ledger(programs / "sweep").values()}
    assert reasons == {
        "fails": "training: error: heads=4 is not divisible by kv_heads=3",
        "raises": "training: RuntimeError: out of memory",
        "dies": "training: killed by SIGKILL (out of memory?); last line: step 1",
        "a": None,
    }
    assert statuses(programs)["a/0"] == "finished" and names(programs).count("perplexity") == 1
    out = capsys.readouterr().out
    assert "failed: fails seed 0: training: error: heads=4 is not divisible by kv_heads=3" in out
    assert run_sweep([*given, "sweep.retry=false"]) == 1 and len(names(programs)) == 6
    assert run_sweep(given) == 1 and names(programs)[6:] == ["train"] * 3


def test_a_failed_evaluation_does_not_train_again(programs):
    (programs / "no_eval").touch()
    given = arguments(programs, ["a"])
    assert run_sweep(given) == 1
    assert [e.reason for e in read_ledger(programs / "sweep").values()] == ["perplexity: ValueError: no data"]
    (programs / "no_eval").unlink()
    assert run_sweep(given) == 0 and names(programs) == ["train", "perplexity", "perplexity", "mqar"]


@pytest.mark.slow
def test_another_configuration_moves_the_old_folder_aside_and_back(programs, capsys):
    old, new = arguments(programs, ["a"]), arguments(programs, ["a"], "trainer.max_steps=19")
    run_sweep(old)
    key = next(iter(read_ledger(programs / "sweep")))
    assert run_sweep(new) == 0 and names(programs) == ["train", "perplexity", "mqar"] * 2
    aside = programs / f"sweep/arms/a/seed-0~{key[:8]}"
    assert (aside / "eval/mqar.json").is_file() and f"kept as {aside}" in capsys.readouterr().out
    folders = {e.key: e.folder for e in read_ledger(programs / "sweep").values()}
    assert folders.pop(key) == f"arms/a/{aside.name}" and list(folders.values()) == ["arms/a/seed-0"]
    assert run_sweep(old) == 0 and len(names(programs)) == 6, "what was run before is run again"
    assert not aside.exists() and read_ledger(programs / "sweep")[key].folder == "arms/a/seed-0"
    config = json.loads((programs / "sweep/arms/a/seed-0/config.yaml").read_text())
    assert "trainer.max_steps" not in config
    assert len(list((programs / "sweep/arms/a").iterdir())) == 2


def test_a_configuration_comes_back_from_behind_one_that_failed_at_once(programs, capsys):
    """The failed one has left nothing but its output in the folder."""
    good = arguments(programs, ["a"])
    assert run_sweep(good) == 0
    train = (programs / "train.py").read_text()
    (programs / "train.py").write_text("raise SystemExit('error: no')")
    assert run_sweep([*good, "trainer.max_steps=7"]) == 1
    (programs / "train.py").write_text(train)
    before = len(names(programs))
    assert run_sweep(good) == 0
    assert "was moved back" in capsys.readouterr().out
    assert len(names(programs)) == before
    assert (programs / "sweep/arms/a/seed-0/eval/mqar.json").is_file() and statuses(programs) == {"a/0": "finished"}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_stopped(programs):
    given = arguments(programs, ["a", "slow", "slow_unsaved", "b"])
    with subprocess.Popen(driver_command(programs, given), cwd=ROOT, stdout=subprocess.DEVNULL) as driver:
        for count in (1, 2):  # kill the driver, and the arm that it has trained until then, twice
            wait_for(lambda: names(programs).count("waits") == count)  # noqa: B023
            if count == 1:
                os.kill(read_calls(programs)[-1]["pid"], signal.SIGKILL)
        os.kill(driver.pid, signal.SIGKILL)
        os.kill(read_calls(programs)[-1]["pid"], signal.SIGKILL)
    assert statuses(programs) == {"a/0": "finished", "slow/0": "failed", "slow_unsaved/0": "started"}
    (programs / "go").touch()
    before = len(names(programs))
    assert run_sweep(given) == 0
    evaluated = ["perplexity", "mqar"]
    again = ["resume", "waits", *evaluated, "train", "waits", *evaluated, "train", *evaluated]
    assert names(programs)[before:] == again
    interrupted = results(programs)
    aside = [p.name for p in (programs / "sweep/arms/slow_unsaved").iterdir() if "~" in p.name]
    assert len(aside) == 1, "an attempt that cannot be continued is kept"
    os.rename(programs / "sweep", programs / "interrupted")
    assert run_sweep(given) == 0
    assert results(programs) == interrupted and len(interrupted) == 8


@pytest.mark.slow
def test_a_run_that_outlives_its_sweep_is_waited_for(programs, capsys):
    given = arguments(programs, ["slow", "a"])
    with subprocess.Popen(driver_command(programs, given), cwd=ROOT, stdout=subprocess.DEVNULL) as driver:
        wait_for(lambda: "waits" in names(programs))
        driver.kill()
    when(lambda: "mqar" in names(programs), (programs / "go").touch)
    assert run_sweep(given) == 0
    assert names(programs) == ["train", "waits", "train", "perplexity", "mqar", "perplexity", "mqar"]
    assert "slow seed 0: is still trained by a process of an earlier start: waiting" in capsys.readouterr().out


def test_a_run_that_outlives_its_sweep_and_locks_late_is_waited_for(programs, capsys, monkeypatch):
    """The folder looks free when the run is started again, and is locked when the second process wants it."""
    folder = programs / "sweep/arms/a/seed-0"
    folder.mkdir(parents=True)
    lock, looks = FileLock(folder / ".lock"), []

    def is_busy(where):
        looks.append(runs.is_busy(where))
        if len(looks) == 1:
            lock.acquire()
        elif len(looks) == 4:
            lock.release()
        return looks[-1]

    monkeypatch.setattr(sweep, "is_busy", is_busy)
    assert run_sweep(arguments(programs, ["a"])) == 0
    assert looks[:4] == [False, True, True, True] and names(programs) == ["train", "perplexity", "mqar"]
    assert statuses(programs) == {"a/0": "finished"}
    assert "a seed 0: is still trained by a process of an earlier start: waiting" in capsys.readouterr().out


def test_an_ignored_hangup_stays_ignored(programs):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        when(lambda: "waits" in names(programs), lambda: os.kill(os.getpid(), signal.SIGHUP))
        when(lambda: "waits" in names(programs), (programs / "go").touch)
        assert run_sweep(arguments(programs, ["slow"])) == 0
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.parametrize("number", [*in_ci(signal.SIGINT), signal.SIGTERM])
def test_a_signal_lets_runs_save_and_says_how_to_go_on(programs, capsys, number):
    given = arguments(programs, ["slow", "slower", "a"], "sweep.jobs=2")
    when(lambda: names(programs).count("waits") == 2, lambda: os.kill(os.getpid(), number))
    assert run_sweep(given) == 128 + number
    assert {p.parent.parent.name for p in programs.glob("sweep/arms/*/seed-0/saved")} == {"slow", "slower"}
    assert statuses(programs) == {"slow/0": "started", "slower/0": "started"}
    assert "continue with: python train.py -m sweep=hybrid_ratio" in capsys.readouterr().out
    (programs / "go").touch()
    assert run_sweep(given) == 0 and names(programs).count("resume") == 2 and names(programs).count("mqar") == 3


def test_a_second_signal_ends_a_run_that_does_not_listen(programs):
    train = programs / "train.py"
    train.write_text(train.read_text().replace("raise SystemExit(128 + number)", "pass"))
    waits = when(lambda: "waits" in names(programs), lambda: os.kill(os.getpid(), signal.SIGINT))
    saved = programs / "sweep/arms/slow/seed-0/saved"
    when(saved.exists, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert run_sweep(arguments(programs, ["slow"])) == 130 and not waits.is_alive()
    assert not (programs / "sweep/arms/slow/seed-0/metrics.jsonl").exists()


def test_two_drivers_cannot_have_one_folder(programs):
    folder = programs / "sweep"
    with RunFolder(folder).locked(), pytest.raises(ConfigError, match=rf"process {os.getpid()} on .*hydra.sweep.dir"):
        run_sweep(arguments(programs, ["a"]))
    assert names(programs) == [] and run_sweep(arguments(programs, ["a"])) == 0
    FileLock(folder / ".lock").acquire(timeout=0)


@pytest.mark.slow
def test_several_runs_at_a_time(programs, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given = arguments(programs, ["slow", "slower", "slowest"], "sweep.jobs=2")
    counted = []
    when(
        lambda: names(programs).count("waits") == 2,
        lambda: (time.sleep(0.3), counted.append(names(programs).count("train")), (programs / "go").touch()),
    )
    assert run_sweep(given) == 0 and counted == [2]
    assert statuses(programs) == dict.fromkeys(("slow/0", "slower/0", "slowest/0"), "finished")
    threads = {call["threads"] for call in read_calls(programs) if call["what"] == "train"}
    assert threads == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_a_sweep_without_m_says_what_to_type():
    with pytest.raises(ConfigError, match=r"add -m, as in python train\.py -m sweep=window"):
        check_command(["sweep=window"])


def real_sweep(folder, *more):
    """A sweep of the real programs, on a few kilobytes of text."""
    return [
        *(
            sys.executable,
            "train.py",
            "-m",
            "sweep=kv_heads",
            "seed=0",
            "model.heads=2",
            "experiment=tiny",
            "data=text",
        ),
        *(f"data.path={write_text(folder / 'text')}", f"data.cache_dir={folder / 'cache'}", "data.length=32"),
        *("model.width=32", "trainer.accelerator=cpu", "sweep.tasks=[perplexity]", *more),
    ]


@pytest.mark.slow
def test_the_real_programs(tmp_path):
    """One arm that can be trained and one that cannot; three processes besides the driver."""
    folder = tmp_path / "sweep"
    arms = "{name: kv1, overrides: ['mixers.gqa.kv_heads=1']}", "{name: burst, overrides: ['optimizer.lr=1e30']}"
    more = "sweep.rule=null", f"sweep.arms=[{','.join(arms)}]", "task.max_documents=3"
    command = real_sweep(tmp_path, *more, "trainer.max_steps=2", f"hydra.sweep.dir={folder}")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    entries = {entry.arm: entry for entry in read_ledger(folder).values()}
    assert (entries["kv1"].status, entries["kv1"].tasks) == ("finished", ["perplexity task.max_documents=3"])
    assert entries["burst"].status == "failed" and "training: error: the loss is" in entries["burst"].reason
    run = folder / entries["kv1"].folder
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 2
    assert len(list((run / "eval").glob("perplexity*.json"))) == 1
    assert "match     model.mlp_width" in (run / "output.log").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # eight programs one after the other, each of which takes a minute on a busy machine
def test_killed_and_continued_is_never_killed(tmp_path):
    """kill -9 of the driver and of what it trains; then the same command, with the real programs."""
    command = real_sweep(tmp_path, "mixers.gqa.kv_heads=1", "trainer.max_steps=200", "trainer.checkpoint_every=20")
    whole, parts = ([*command, f"hydra.sweep.dir={tmp_path / name}"] for name in ("whole", "parts"))
    assert subprocess.run(whole, cwd=ROOT).returncode == 0
    run = "arms/kv1/seed-0"
    with subprocess.Popen(parts, cwd=ROOT) as driver:
        try:
            wait_for(lambda: len(read_metrics(tmp_path / "parts" / run / "metrics.jsonl")) > 50)
        finally:
            driver.kill()  # also where it did not happen: leaving the block waits for the driver
        os.kill(int((tmp_path / "parts" / run / ".owner").read_text().split()[1]), signal.SIGKILL)
    assert [entry.status for entry in read_ledger(tmp_path / "parts").values()] == ["started"]
    assert len(read_metrics(tmp_path / "parts" / run / "metrics.jsonl")) < 200
    assert subprocess.run(parts, cwd=ROOT).returncode == 0
    assert f"resume={tmp_path / 'parts' / run}" in (tmp_path / "parts" / run / "output.log").read_text()
    kept = ("step", "tokens", "train/loss", "train/grad_norm", "val/loss")
    numbers = []
    for name in ("whole", "parts"):
        rows = [[row.get(key) for key in kept] for row in read_metrics(tmp_path / name / run / "metrics.jsonl")]
        (file,) = (tmp_path / name / run / "eval").glob("perplexity*.json")
        results = [record.model_dump(exclude={"wall_s", "tok_s"}) for record in read_results(file).results]
        numbers.append((rows, results))
    assert numbers[0] == numbers[1] and len(numbers[0][0]) >= 200
    write_report(tmp_path / "parts")
    for file in write_report(tmp_path / "whole"):
        first = file.read_bytes().replace(*(os.fsencode(tmp_path / name) for name in ("whole", "parts")))
        second = tmp_path / "parts" / "report" / file.name
        if file.suffix in (".html", ".md"):
            assert without_measured(first.decode()) == without_measured(second.read_text())
        elif "speed" not in file.name:
            assert first == second.read_bytes(), file.name
