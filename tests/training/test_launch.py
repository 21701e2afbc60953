"""Several processes, as torchrun and srun start them: one folder, one voice; and commands that can be repeated."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zoo.commands.train import choose_folder
from zoo.config import ConfigError
from zoo.files import read_metrics
from zoo.ranks import Launch, job_id, this_launch
from zoo.training.strategies import launched_devices

ROOT = Path(__file__).resolve().parents[2]
DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_steps=4", "trainer.validate_every=2"]


def clean_environment(**more):
    env = {
        k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "TORCHELASTIC", "MASTER", "RANK", "LOCAL"))
    }
    return {**env, "PYTHONPATH": str(ROOT), **more}


def with_torchrun(cwd, arguments, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-id=job7"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(ROOT / "train.py"), *arguments]
    return [subprocess.Popen(command, cwd=cwd, env=clean_environment(**more), **PIPES)]


def with_srun(cwd, arguments, job="4711", **more):
    shared = {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    shared |= {"SLURM_NODELIST": "localhost", "SLURM_JOB_NAME": "train"}
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    env = [clean_environment(**shared, SLURM_PROCID=str(r), SLURM_LOCALID=str(r), **more) for r in range(2)]
    return [subprocess.Popen(command, cwd=cwd, env=e, **PIPES) for e in env]


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
START = {"torchrun": with_torchrun, "srun": with_srun}


def ended(processes):
    done = [process.communicate(timeout=300) for process in processes]
    return [p.returncode for p in processes], *("".join(texts) for texts in zip(*done))


@pytest.mark.slow
@pytest.mark.parametrize("by", START)
def test_processes_share_one_folder_and_one_voice_and_the_command_can_be_repeated(small_overrides, tmp_path, by):
    arguments = [*small_overrides, *DDP, "resume=auto"]
    status, printed, errors = ended(START[by](tmp_path, arguments))
    assert status == [0] * len(status), errors
    folder = tmp_path / "runs" / {"torchrun": "job7", "srun": "4711"}[by]
    assert [*tmp_path.iterdir()] == [folder.parent] and [*folder.parent.iterdir()] == [folder]
    for line in ("run ", "held-out", "finished:", "evaluate:"):
        assert len(re.findall(rf"^{line}", printed, re.M)) == 1, printed
    assert len(re.findall(r"^step 4/4", errors, re.M)) == 1, errors
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row] == [1, 2, 3, 4]
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    status, printed, errors = ended(START[by](tmp_path, arguments))
    assert status == [0] * len(status), errors
    assert len(re.findall("^finished:", printed, re.M)) == 1
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("by", START)
def test_a_refusal_is_said_once_and_leaves_no_folder(small_overrides, tmp_path, by):
    job = {"srun": {"job": f"8{time.time_ns()}"}}.get(by, {})
    status, printed, errors = ended(START[by](tmp_path, [*small_overrides, *DDP, "model.width=31"], **job))
    assert all(status) and (by == "torchrun" or status == [2, 2])
    assert len(re.findall(r"error: .*width=31", errors)) == 1, errors
    assert printed == "" and not [*tmp_path.rglob("runs/*")]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(small_overrides, tmp_path):
    arguments = [*small_overrides, *DDP, "trainer.max_steps=4000", "hydra.run.dir=run", "trainer.validate_every=500"]
    processes = with_srun(tmp_path, arguments, job="4712")
    until = time.monotonic() + 240
    while len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGUSR1)
    status, _, errors = ended(processes)
    assert status == [128 + signal.SIGUSR1] * 2, errors
    assert len(re.findall("stopped by SIGUSR1 at step", errors)) == 1 and "Traceback" not in errors
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_what_started_a_process_is_read_from_its_environment():
    assert this_launch({}) == Launch(None, 0, 1, 1)
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert this_launch(torchrun) == Launch("torchrun", 3, 4, 2)
    batch_script = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert this_launch(batch_script) == Launch(None, 0, 1, 1)
    assert this_launch({**batch_script, "SLURM_STEP_ID": "0", "SLURM_NNODES": "2"}) == Launch("srun", 0, 8, 2)
    assert this_launch({**batch_script, "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "interactive"}).by is None
    assert this_launch({"LOCAL_RANK": "1"}) == Launch("lightning", 1, 1, 1)
    assert not this_launch({"LOCAL_RANK": "0", "NODE_RANK": "1"}).speaks


def test_names_of_jobs():
    assert job_id({}) is None and job_id({"TORCHELASTIC_RUN_ID": "none"}) is None
    assert job_id({"TORCHELASTIC_RUN_ID": "mine", "SLURM_JOB_ID": "5"}) == "5"
    assert job_id({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}) == "5_3"


def test_devices_are_those_that_were_started():
    assert launched_devices(Launch(None, 0, 1, 1), "auto", 1, 1) == (1, 1)
    assert launched_devices(Launch("torchrun", 0, 8, 2), "ddp", "auto", 1) == (4, 2)
    with pytest.raises(ConfigError, match=r"torchrun started 2 processes, and trainer.strategy=auto.*trainer=ddp"):
        launched_devices(Launch("torchrun", 0, 2, 1), "auto", 1, 1)
    with pytest.raises(ConfigError, match=r"trainer.devices=3: srun started 2 processes"):
        launched_devices(Launch("srun", 0, 2, 1), "ddp", 3, 1)


def test_resume_auto_needs_to_know_a_folder(tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"resume=auto: which run.*hydra.run.dir"):
        choose_folder(["resume=auto", "model=nano"])
    assert choose_folder(["resume=auto", f"hydra.run.dir={tmp_path}"]) == [f"hydra.run.dir={tmp_path}"]
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.chdir(tmp_path)
    assert choose_folder(["resume=auto", "seed=3"]) == ["seed=3", "hydra.run.dir=runs/12"]
    (tmp_path / "runs" / "12").mkdir(parents=True)
    (tmp_path / "runs" / "12" / "config.yaml").write_text("model: {}\ndata: {}\n")
    assert choose_folder(["resume=auto", "seed=3"]) == ["seed=3", "resume=runs/12", "hydra.run.dir=runs/12"]
