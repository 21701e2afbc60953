"""Loader workers outlive signals to the process group, and never their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys, time
from torch.utils.data import Dataset
from zoo.data.workers import STOP_SIGNALS, SteadyLoader

class Numbers(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        time.sleep(0.05)
        return index

for number in STOP_SIGNALS:
    signal.signal(number, lambda *_: None)
loader = iter(SteadyLoader(Numbers(), batch_size=None, num_workers=2, persistent_workers=True))
print(next(loader), *(w.pid for w in loader._workers), flush=True)
print(*loader, flush=True)
"""


def start():
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    return process, [int(word) for word in process.stdout.readline().split()[1:]]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(signal, "sigwaitinfo"), reason="Linux: no sigwaitinfo, which names the sender of a signal"
)
def test_signals_to_the_process_group_leave_the_workers_at_work():
    process, _ = start()
    for number in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        os.killpg(process.pid, getattr(signal, number))
        time.sleep(0.05)
    numbers, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert numbers.split() == [str(n) for n in range(1, 40)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux alone has /proc")
def test_workers_of_a_killed_parent_end():
    process, workers = start()
    assert len(workers) == 2 and all(map(alive, workers))
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))
