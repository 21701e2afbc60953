"""Stand-ins for train.py and eval.py that start in a moment: what a sweep's driver sees of them is the same."""

import json
import sys

import torch

# A run takes "steps" as fast as it can; one whose pattern starts with "slow" waits at half of them for the file `go`.
TRAIN = """
import json, os, shutil, signal, sys, time
from pathlib import Path
from filelock import FileLock

here = Path(__file__).parent
given = dict(a.split("=", 1) for a in sys.argv[1:])
resumed = "resume" in given
folder = Path(given.get("resume") or given["hydra.run.dir"].strip("'"))
note = {"pid": os.getpid(), "arguments": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS")}


def log(what):
    with (here / "calls.jsonl").open("a") as file:
        file.write(json.dumps({**note, "what": what}) + "\\n")


def stop(number, frame):
    (folder / "saved").touch()
    raise SystemExit(128 + number)


signal.signal(signal.SIGTERM, stop)
folder.mkdir(parents=True, exist_ok=True)
with FileLock(folder / ".lock", timeout=0):
    config = folder / "config.yaml"
    if resumed:
        given = json.loads(config.read_text())
    elif config.exists():
        sys.exit("error: already holds a run")
    pattern = given["schedule.pattern"]
    log("resume" if resumed else "train")
    if pattern == "fails":
        print("error: heads=4 is not divisible by kv_heads=3", flush=True)
        sys.exit(2)
    if pattern == "raises":
        raise RuntimeError("out of memory")
    if pattern == "dies":
        print("step 1", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    config.write_text(json.dumps(given))
    (folder / "checkpoints").mkdir(exist_ok=True)
    last = folder / "checkpoints" / "last.ckpt"
    if pattern.startswith("slow"):
        if not pattern.endswith("unsaved"):
            shutil.copy(here / "half.ckpt", last)
        log("waits")
        end = time.monotonic() + 60
        while not (here / "go").exists() and time.monotonic() < end:
            time.sleep(0.02)
    shutil.copy(here / "full.ckpt", last)
    value = len(pattern) + int(given["seed"]) / 10
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 20, "val/bits_per_byte": value}) + "\\n")
"""
EVAL = """
import json, os, sys
from pathlib import Path

here = Path(__file__).parent
given = dict(a.split("=", 1) for a in sys.argv[1:])
with (here / "calls.jsonl").open("a") as file:
    file.write(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:], "what": given["task"]}) + "\\n")
if (here / "no_eval").exists():
    sys.exit("Traceback\\nValueError: no data")
eval = Path(given["run"]) / "eval"
eval.mkdir(exist_ok=True)
(eval / (given["task"] + ".json")).write_text((Path(given["run"]) / "metrics.jsonl").read_text())
"""


def write_programs(folder, steps=20):
    """train.py, eval.py and the checkpoints that they copy."""
    (folder / "train.py").write_text(TRAIN)
    (folder / "eval.py").write_text(EVAL)
    for name, step in (("half", steps // 2), ("full", steps)):
        torch.save({"decoder": {}, "state_dict": {}, "global_step": step}, folder / f"{name}.ckpt")
    return folder


def read_calls(folder):
    """What was started so far, in order: train, resume, waits (train.py), or the name of a task."""
    file = folder / "calls.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


DRIVER = """
import sys
from pathlib import Path
from zoo.sweeps import runs
from zoo.sweeps import driver as sweep
runs.PROGRAMS = Path(sys.argv[1])
sweep.prepare = lambda plan: plan  # patterns of stand-ins are no attentions
sys.exit(sweep.run_sweep(sys.argv[2:]))
"""


def driver_command(folder, arguments):
    """A driver in a process of its own, with the stand-ins in ``folder``."""
    return [sys.executable, "-c", DRIVER, str(folder), *arguments]
