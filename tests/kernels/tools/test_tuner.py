"""The tuner: what it tries, what it refuses, and that a launch takes what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from zoo_kernels.launch import ARCHITECTURES, CONFIGS_VARIABLE, INTERPRETER, Config, choose, record
from zoo_kernels.tools.calls import Call, Size, every_call
from zoo_kernels.tools.tuner import (
    FormCheck,
    TileRow,
    Trial,
    as_record,
    calls_of,
    candidates,
    find_row,
    save,
    using,
    winner,
)

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = Config({"CHUNK": 64, "TILE": 32}, 4, 2)
TABLE = {"mix": {"sm_90": {(2, 64): SHIPPED, (2, 128): SHIPPED}}}
ROW = TileRow("linear", "mix", "sm_90", 2, 64)


def taken(width=64, dtype=torch.bfloat16):
    with record("sm_90"):
        return choose(TABLE, "mix", torch.device("cpu"), dtype, width)


def entry(config=SHIPPED, row=ROW):
    return as_record(row, [Trial(SHIPPED, 2.0)], Trial(config, 1.0), torch.device("cpu"))


def test_candidates_start_with_what_ships_and_are_bounded():
    found = candidates(SHIPPED, limit=1000)
    assert found[0] == SHIPPED
    assert len({(tuple(c.tiles.items()), c.warps, c.stages) for c in found}) == len(found)
    assert {c.tiles["CHUNK"] for c in found} == {32, 64, 128}
    assert {c.tiles["TILE"] for c in found} == {16, 32, 64}
    assert {c.warps for c in found} == {2, 4, 8} and {c.stages for c in found} == {1, 2, 3}
    assert candidates(SHIPPED, limit=5) == found[:5]
    assert {c.tiles["TILE"] for c in candidates(Config({"TILE": 16}))} == {16, 32}


def test_a_row_is_found_by_the_next_width(monkeypatch):
    with record("sm_90"):
        assert find_row("linear.mix", torch.bfloat16, 100, torch.device("cpu")).width == 120
        assert find_row("linear.mix", torch.bfloat16, 128, torch.device("cpu")).width == 128
        with pytest.raises(ValueError, match=r"expected one of .*linear\.mix"):
            find_row("mix", torch.bfloat16, 64, torch.device("cpu"))
        with pytest.raises(ValueError, match="no row that wide"):
            find_row("linear.mix", torch.bfloat16, 512, torch.device("cpu"))


def test_a_row_is_replaced_for_a_while_and_no_other():
    row = TileRow("linear", "mix", ARCHITECTURES[-1], 2, 64)
    before, neighbor = row.config, row._replace(kernel="parallel").config
    with using(row, SHIPPED):
        assert row.config is SHIPPED
        assert row._replace(kernel="parallel").config is neighbor
    assert row.config is before


def test_the_calls_of_a_kernel_are_those_that_launch_it():
    found = {call.name for call in calls_of(TileRow("linear", "parallel", "sm_90", 2, 64), every_call(), Size(64))}
    assert "parallel" in found and all("parallel" in name for name in found)
    assert {call.name for call in calls_of(TileRow("linear", "step", "sm_90", 2, 64), every_call(), Size(64))} == {
        call.name for call in every_call() if call.family == "linear" and "step" in call.name
    }


def test_a_winner_must_beat_what_ships_by_more_than_noise():
    shipped, same, fast = Trial(SHIPPED, 1.0), Trial(SHIPPED, 0.99), Trial(SHIPPED, 0.8)
    wrong = Trial(SHIPPED, None, "wrong")
    assert winner([shipped, same, wrong]) is None
    assert winner([shipped, same, fast, wrong]) is fast
    assert winner([wrong, same]) is same  # what ships does not run on this GPU
    assert winner([wrong]) is None


def test_a_launch_takes_what_the_file_holds(tmp_path, monkeypatch):
    file = tmp_path / "configs.json"
    faster = Config({"CHUNK": 128, "TILE": 16}, 8, 3)
    save(file, entry(SHIPPED))
    save(file, entry(SHIPPED, ROW._replace(width=128)))
    save(file, entry(faster))
    assert len(json.loads(file.read_text())["configs"]) == 2
    assert list(tmp_path.iterdir()) == [file]
    assert taken() is SHIPPED
    monkeypatch.setenv(CONFIGS_VARIABLE, str(file))
    assert taken() == taken(width=40) == faster
    assert taken(width=128) == SHIPPED


@pytest.mark.parametrize("text", [None, "{", "[]", '{"configs": [{}]}', '{"configs": [3]}'])
def test_a_malformed_file_is_an_error_that_names_it(text, tmp_path, monkeypatch):
    file = tmp_path / "configs.json"
    if text is not None:
        file.write_text(text)
    monkeypatch.setenv(CONFIGS_VARIABLE, str(file))
    with pytest.raises(ValueError, match=f"{CONFIGS_VARIABLE}={file}"):
        taken()


def test_a_file_with_the_tiles_of_another_kernel_is_an_error_that_names_it(tmp_path, monkeypatch):
    save(tmp_path / "configs.json", entry(Config({"ROWS": 16})))
    monkeypatch.setenv(CONFIGS_VARIABLE, str(tmp_path / "configs.json"))
    with pytest.raises(ValueError, match=r"configs\.json: mix has the tiles CHUNK, TILE"):
        taken()


SEARCH = """
import json, sys
from pathlib import Path
import torch
from zoo_kernels.tools import tuner
from zoo_kernels.tools.calls import Size, every_call
from zoo_kernels.launch import INTERPRETER, Config, choose
from zoo_kernels.linear.triton import host as triton_host

CPU = torch.device("cpu")
row = tuner.find_row("linear.mix", torch.float32, 16, CPU)
shipped = row.config
wrong, broken = shipped._replace(stages=5), shipped._replace(warps=16)
good = shipped._replace(tiles={**shipped.tiles, "CHUNK": 16})
times = {id(wrong): 1.0, id(broken): 1.0, id(good): 2.0, id(shipped): 3.0}
start = triton_host.launch

def launch(kernel, grid, *arguments, config, **constants):
    if config is broken:
        raise RuntimeError("out of resource: shared memory")
    start(kernel, grid, *arguments, config=config, **constants)
    if config is wrong:
        arguments[3][..., -1] += 0.01  # the output of mix

triton_host.launch = launch
tuner.candidates = lambda config, limit: [shipped, wrong, broken, good]
ran = []
def timer(run):
    run()
    ran.append(row.config)
    return times[id(row.config)]

small = Size(16, 33, 1, 2, torch.float32)
calls = [call for call in every_call() if call.name in ("decay", "token decay", "step")]
trials = tuner.tune(row, small, small, calls=calls, timer=timer)
best = tuner.winner(trials)
tuner.save(Path(sys.argv[1]), tuner.as_record(row, trials, best, CPU))
assert row.config is shipped and ran == [shipped, good], ran
print(json.dumps([trial.reason for trial in trials]))
"""


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}", **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_fast_but_wrong_candidate_is_refused_and_a_faster_right_one_wins(tmp_path):
    """In the interpreter, with times that are given: wrong 1, broken 1, good 2, shipped 3."""
    file = tmp_path / "configs.json"
    done = run_script("-c", SEARCH, str(file), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    shipped, wrong, broken, good = json.loads(done.stdout.splitlines()[-1])
    assert shipped == good == ""
    assert wrong.startswith("wrong: decay, output: error 0.01")
    assert "shared memory" in broken
    (found,) = json.loads(file.read_text())["configs"]
    assert found["tiles"]["CHUNK"] == 16
    assert (found["milliseconds"], found["shipped_milliseconds"]) == (2.0, 3.0)
    assert found["gpu"] == "cpu" and found["triton"] and found["torch"] and found["date"]


def test_an_error_in_a_block_of_small_numbers_is_seen():
    """The error is far below the largest number, but not below those of its own head and block."""
    right = torch.ones(2, 128, 3, 4, dtype=torch.float64)
    right[:, :64] *= 1e4

    def run(inputs, backend):
        made = right.clone()
        made[1, 100, 2, 0] += 0.5 if backend == "triton" else 0.01
        return {"output": made, "state": right[:, :4]}

    check = FormCheck(Call("made up", lambda size: {}, run), Size(4, 128, dtype=torch.bfloat16))
    assert check.fault().startswith("made up, output: error 0.49, allowed 0.01")


@pytest.mark.slow
@pytest.mark.parametrize("wide", [64, 128])
def test_a_candidate_with_wide_chunks_is_right_for_a_scan(wide):
    call = next(call for call in every_call() if (call.family, call.name) == ("linear", "scan"))
    row = TileRow("linear", "mix", INTERPRETER, 4, 256)
    with using(row, Config({"CHUNK": wide, "TILE": 32}, 4, 1)):
        assert FormCheck(call, Size(16, 200, 1, 2, torch.float32)).fault() is None


@pytest.mark.slow
def test_without_a_gpu_it_says_so():
    done = run_script("scripts/tune_kernels.py", "kernel=linear.mix", "width=128")
    assert done.returncode == 2
    assert "no CUDA GPU" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["speed=1", "width=x", "dtype=fp8"])
def test_a_wrong_option_is_one_line_and_status_2(wrong):
    done = run_script("scripts/tune_kernels.py", wrong)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and wrong.split("=")[0] in done.stderr
