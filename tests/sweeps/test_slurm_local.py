"""The launcher of clusters with submitit itself, whose cluster "local" starts each job as a process of this machine."""

import sys
import time

import pytest

pytest.importorskip("submitit", reason="the extra slurm is not installed")

from tests.sweeps.test_sweep import arguments, names, programs, results, statuses, wait_for
from zoo.config import ConfigError
from zoo.sweeps.driver import run_sweep
from zoo.sweeps.slurm import SlurmLauncher

__all__ = ["programs"]
LOCAL = (
    "sweep.launcher=slurm",
    "sweep.slurm.cluster=local",
    "sweep.slurm.gpus_per_node=0",
    "sweep.slurm.timeout_min=2",
)


def launcher(tmp_path, jobs=1, **options):
    return SlurmLauncher(jobs, tmp_path / "jobs", "ratio", {"cluster": "local", "timeout_min": 2, **options})


def finish(job):
    wait_for(job.poll)
    return job.codes


@pytest.mark.slow
def test_a_job_does_all_commands_until_one_fails(tmp_path):
    made = launcher(tmp_path)
    shown = [sys.executable, "-c", "print('here')"]
    job = made.start([shown, [sys.executable, "-c", "print('why'); raise SystemExit(3)"], shown], tmp_path / "log")
    assert not made.free()
    assert finish(job) == [0, 3] and made.free()
    assert (tmp_path / "log").read_text().splitlines().count("here") == 1
    assert job.fault() == "why"


@pytest.mark.slow
def test_a_job_that_is_stopped_lets_its_command_save(tmp_path):
    code = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1], "saved").touch()
    raise SystemExit(1)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "up").touch()
time.sleep(60)
"""
    job = launcher(tmp_path).start([[sys.executable, "-c", code, str(tmp_path)]], tmp_path / "log")
    wait_for((tmp_path / "up").exists)
    begun = time.monotonic()
    job.stop()
    wait_for((tmp_path / "saved").exists)
    assert finish(job) == [1] and time.monotonic() - begun < 30
    assert "job" in job.fault() and "ended with state" in job.fault()


@pytest.mark.slow
def test_a_sweep_by_submitit_is_the_sweep_of_this_machine(programs):
    patterns = ["softmax", "fails", "lightning"]
    run_sweep(arguments(programs, patterns, *LOCAL, "sweep.jobs=2"))
    assert statuses(programs) == {"softmax/0": "finished", "fails/0": "failed", "lightning/0": "finished"}
    before = len(names(programs))
    run_sweep(arguments(programs, ["softmax", "lightning"], *LOCAL, "sweep.jobs=2"))
    assert len(names(programs)) == before, "what is finished is not done again"
    assert len(results(programs)) == 4 and sorted(names(programs)) == sorted(["train"] * 3 + ["perplexity", "mqar"] * 2)


def test_options_that_submitit_refuses_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"sweep\.slurm=.*is refused by submitit"):
        launcher(tmp_path, odd_option=1)
