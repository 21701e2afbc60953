"""Compilation ahead of time: one binary whatever the length and the batch, and a gate that bad kernels do not pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from tests.kernels import dummy_kernels
from zoo_kernels.launch import ARCHITECTURES, record
from zoo_kernels.tools.aot import compile_keys
from zoo_kernels.tools.calls import Size, every_call
from zoo_kernels.tools.offsets import Offsets, count_offsets

ROOT = Path(__file__).resolve().parents[3]
SHAPES = ((1, 1), (3, 1), (1, 64), (3, 100), (1, 129), (3, 333), (1, 1003), (3, 1024), (1, 4096))  # batch, length


def run_compiling(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with ``arguments`` in a process in which kernels are compiled, not interpreted."""
    environment = {k: x for k, x in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )


def keys(run, architecture):
    with record(architecture) as launches:
        run()
    assert launches
    return compile_keys(launches, architecture)


@pytest.mark.parametrize("call", every_call(), ids=lambda call: f"{call.family}-{call.name}".replace(" ", "-"))
def test_no_length_and_no_batch_needs_a_compilation_of_its_own(call):
    """Linear attention starts further kernels for several segments; what one segment needs is among theirs."""
    found = []
    for batch, length in SHAPES:
        with record("sm_90") as launches:
            call.run(call.inputs(Size(32, length, batch)), "triton")
        found.append(frozenset().union(*compile_keys(launches, "sm_90").values()))
    assert all(binaries <= max(found, key=len) for binaries in found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_kernel_that_specializes_on_its_length_is_seen(architecture):
    same = [keys(lambda: dummy_kernels.call(dummy_kernels.good, length=n), architecture) for n in (1, 64, 99)]  # noqa: B023
    assert same[0] == same[1] == same[2]
    other = [keys(lambda: dummy_kernels.call(dummy_kernels.narrow, length=n), architecture) for n in (1, 64, 99)]  # noqa: B023
    assert len({found["narrow"] for found in other}) == 3


def test_dtype_width_tiles_and_warps_are_part_of_the_key():
    found = [{}, {"width": 32}, {"tile": 32}, {"warps": 8}, {"stages": 3}]
    made = [keys(lambda: dummy_kernels.call(dummy_kernels.good, **o), "sm_90")["good"] for o in found]  # noqa: B023
    assert len(set(made)) == len(found)


GATE = """
import json, sys
from zoo_kernels.tools.aot import KernelName, compile_all, job
from zoo_kernels.launch import record
from tests.kernels import dummy_kernels as d

if __name__ == "__main__":
    with record("sm_90") as launches:
        d.call(d.good)
        d.call(d.good)  # the same job
        d.call(d.good, tile=128, width=16, warps=1)
        d.call(d.large, tile=64, width=256, stages=5)
        d.call(d.narrow)
        d.call(d.half_narrow)
        d.call(d.broken)
    jobs = list(dict.fromkeys(job(launch, "sm_90") for launch in launches))
    names = ["good", "spilling", "large", "narrow", "half narrow", "broken"]
    jobs += [job(launches[0], "sm_80"), jobs[0]._replace(kernel=KernelName(d.__name__, "crashing"))]
    names = dict(zip(jobs, [*names, "old", "crashing"]))
    assert len(names) == len(jobs)
    found = {names[made]: cost._asdict() | {"faults": cost.faults(made)} for made, cost in compile_all(jobs, 2)}
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, dict]:
    file = tmp_path_factory.mktemp("gate") / "gate.py"
    file.write_text(GATE, encoding="utf-8")
    done = run_compiling(str(file))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_gate_passes_good_kernels(compiled):
    assert compiled["good"]["faults"] == compiled["old"]["faults"] == []
    assert compiled["good"]["registers"] > 0 and compiled["good"]["warps"] == 4
    assert compiled["good"]["wgmma"] > 0 == compiled["good"]["mma"]
    assert compiled["old"]["mma"] > 0 == compiled["old"]["wgmma"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("spilling", "spills"),
        ("large", "of shared memory"),
        ("narrow", "pointer offsets is in 64 bits"),
        ("half narrow", "32-bit product"),
        ("broken", "does not compile"),
        ("crashing", "crashed"),
    ],
)
def test_the_gate_refuses_what_must_not_ship(compiled, name, reason):
    assert any(reason in fault for fault in compiled[name]["faults"])


def test_offsets_are_read_from_the_text():
    text = """
tt.func public @k(%x: !tt.ptr<f32> loc("x"(#loc)), %stride: i32 loc("stride"(#loc)), %heads: i32) {
  %i = tt.get_program_id x : i32 loc(#loc1)
  %a = arith.muli %i, %heads : i32 loc(#loc1)
  %b = arith.extsi %a : i32 to i64
  %c = arith.extsi %stride : i32 to i64
  %d = arith.muli %b, %c : i64
  %p = tt.addptr %x, %d : !tt.ptr<f32>, i64
  %e = arith.muli %i, %stride : i32
  %q = tt.addptr %p, %e : !tt.ptr<f32>, i32
"""
    assert count_offsets(text) == Offsets(wide=1, narrow=1, overflowing=1)


@pytest.mark.slow
def test_the_script_prints_a_table_and_writes_a_file(tmp_path):
    out = tmp_path / "cost.json"
    chosen = "arch=sm_90", "kernel=linear.step", "width=256", "dtype=bf16", "jobs=1"
    done = run_compiling("scripts/compile_kernels.py", *chosen, f"out={out}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "linear.step" in done.stdout
    written = json.loads(out.read_text())
    assert [row["width"] for row in written["rows"]] == [256]
    assert written["rows"][0]["stack"] == 0 < written["rows"][0]["registers"]


@pytest.mark.slow
def test_the_script_fails_on_a_bad_row(tmp_path):
    file = tmp_path / "bad.py"
    file.write_text(
        "import runpy, sys\n"
        "from zoo_kernels.launch import Config\n"
        "from zoo_kernels.linear.triton.configs import TABLE\n"
        "TABLE['step'] = {'sm_90': {(2, 64): Config({'TILE': 128}, 1, 1)}}\n"
        "sys.argv[1:] = ['arch=sm_90', 'kernel=linear.step', 'width=64', 'dtype=bf16', 'calls=main', 'jobs=1']\n"
        "if __name__ == '__main__':\n"
        "    runpy.run_path('scripts/compile_kernels.py', run_name='__main__')\n",
        encoding="utf-8",
    )
    done = run_compiling(str(file))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAILED: linear.step sm_90, 2 bytes, width 64" in done.stdout
    assert "spills" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["arch=sm_70", "speed=1", "width=x", "jobs=0", "kernel=linear.none"])
def test_a_wrong_option_is_one_line_and_status_2(wrong):
    done = run_compiling("scripts/compile_kernels.py", wrong)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert torch.__version__ not in done.stderr
