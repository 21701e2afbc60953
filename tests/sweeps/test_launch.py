"""What a run's processes are given, and what is told when they fail."""

import importlib
import os
import sys
import time
import types

import pytest

from zoo.config import ConfigError
from zoo.sweeps.launch import LocalLauncher, failure_reason, share_devices


def python(code):
    return [sys.executable, "-c", code]


def finish(job):
    end = time.monotonic() + 30
    while not job.poll():
        assert time.monotonic() < end
        time.sleep(0.01)
    return job.codes


@pytest.mark.parametrize(
    ("jobs", "devices", "each", "expected"),
    [
        (1, "0,1,2,3", None, ["0,1,2,3"]),
        (2, "0,1,2,3", None, ["0,1", "2,3"]),
        (3, "0,1,2,3", None, ["0", "1", "2"]),
        (4, "2,5", None, ["2", "5", "2", "5"]),
        (2, "0,1,2", 2, ["0,1", "0,1"]),
        (2, "GPU-a,GPU-b", 1, ["GPU-a", "GPU-b"]),
    ],
)
def test_devices_are_dealt_out(jobs, devices, each, expected):
    shares = share_devices(jobs, devices.split(","), each)
    assert shares == [{"CUDA_VISIBLE_DEVICES": names} for names in expected]


def test_cores_are_dealt_out_where_there_are_no_devices(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("zoo.sweeps.launch._cores", lambda: 8)
    assert share_devices(3, [], None) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert share_devices(20, [], None)[0] == {"OMP_NUM_THREADS": "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert share_devices(2, [], None) == [{}, {}], "what the user says is not changed"


def test_shares_that_cannot_be():
    with pytest.raises(ConfigError, match=r"sweep\.devices_per_arm=3: expected 1 to 2"):
        share_devices(1, ["0", "1"], 3)
    with pytest.raises(ConfigError, match=r"sweep\.jobs=0"):
        share_devices(0, [], None)


@pytest.mark.parametrize(
    ("log", "code", "expected"),
    [
        ("$ a\nerror: old\n$ b\nstep 1\nerror: heads=4\nafter\n", 2, "error: heads=4"),
        ("$ a\nerror: old\n$ b\nTraceback\nValueError: no\n\n", 1, "ValueError: no"),
        ("$ a\n", 3, "exit status 3"),
        ("", 3, "exit status 3"),
        ("$ a\nstep 7\n", -9, "killed by SIGKILL (out of memory?); last line: step 7"),
        ("$ a\n", -15, "killed by SIGTERM"),
        ("$ a\n" + "x" * 100_000 + "\nerror: end\n", 2, "error: end"),
    ],
)
def test_the_reason_of_a_failure(tmp_path, log, code, expected):
    (tmp_path / "log").write_text(log)
    assert failure_reason(tmp_path / "log", code) == expected
    assert failure_reason(tmp_path / "none", 4) == "exit status 4"


def test_commands_follow_each_other_until_one_fails(tmp_path):
    launcher = LocalLauncher(1, ["7"])
    shown = python("import os; print('sees', os.environ['CUDA_VISIBLE_DEVICES'], flush=True)")
    job = launcher.start([shown, python("raise SystemExit('error: bad')"), shown], tmp_path / "log")
    assert not launcher.free() and finish(job) == [0, 1] and launcher.free()
    text = (tmp_path / "log").read_text()
    assert text.count("sees 7") == 1 and job.fault() == "error: bad"


def test_a_job_that_is_stopped_starts_nothing_more(tmp_path):
    code = f"import pathlib, time; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    job = LocalLauncher(1).start([python(code), python("")], tmp_path / "log")
    end = time.monotonic() + 30
    while not (tmp_path / "up").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    job.stop()
    assert finish(job) == [-15]
    job.stop(hard=True)  # nothing is left to be stopped


class FakeJob:
    """As submitit's: done when asked, with what the function gave."""

    job_id, state = "17", "COMPLETED"

    def __init__(self, result):
        self.given = result

    def done(self):
        return True

    def result(self):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


@pytest.fixture
def submitit(monkeypatch):
    """A module that is called as submitit 1.5 is; the launcher was also run with submitit's own local executor."""
    module = types.ModuleType("submitit")

    class AutoExecutor:
        def __init__(self, folder, cluster=None):
            if cluster not in ("slurm", "local"):
                raise ValueError(f"no cluster {cluster}")
            module.made = self

        def update_parameters(self, **parameters):
            if "odd" in parameters:
                raise NameError("unknown argument: odd")
            self.parameters = parameters

        def submit(self, function, *arguments):
            return FakeJob(module.fails or function(*arguments))

    module.AutoExecutor, module.fails = AutoExecutor, None
    monkeypatch.setitem(sys.modules, "submitit", module)
    return module


def slurm(tmp_path, **options):
    launcher = importlib.import_module("zoo.sweeps.slurm").SlurmLauncher
    return launcher(1, tmp_path / "slurm", "ratio", {"cluster": "slurm", "timeout_min": 5, **options})


def test_slurm_jobs_do_all_of_a_run(tmp_path, submitit):
    launcher = slurm(tmp_path)
    assert submitit.made.parameters == {"name": "zoo-ratio", "timeout_min": 5}
    shown = python("import os; print('in', os.getcwd(), os.environ['SLURM_JOB_NAME'], flush=True)")
    job = launcher.start([shown, python("raise SystemExit(3)"), shown], tmp_path / "log")
    assert not launcher.free() and job.poll() and job.codes == [0, 3] and launcher.free()
    assert (tmp_path / "log").read_text().count(f"in {os.getcwd()} bash") == 1, "Lightning would take SLURM's tasks"
    assert job.fault() == "exit status 3"


def test_a_slurm_job_that_is_lost_says_its_state(tmp_path, submitit):
    submitit.fails = RuntimeError("Job not requeued because: timed-out\nmore")
    FakeJob.state = "TIMEOUT"
    job = slurm(tmp_path).start([python("")], tmp_path / "log")
    assert job.poll() and job.codes == [1]
    assert job.fault() == "job 17 ended with state TIMEOUT: Job not requeued because: timed-out"


def test_slurm_that_cannot_be(tmp_path, submitit, monkeypatch):
    with pytest.raises(ConfigError, match="odd"):
        slurm(tmp_path, odd=1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"needs submitit: pip install .*\[slurm\]"):
        slurm(tmp_path)
