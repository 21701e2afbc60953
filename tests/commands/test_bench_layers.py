"""scripts/bench_layers.py: attentions with options, one record each, errors that say what is expected."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_layers.py"
SMALL = ("length=256", "width=32", "heads=4", "rounds=1")


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_attentions_take_options(tmp_path):
    file = tmp_path / "layers.json"
    done = run(
        *SMALL, "attentions=window:window=64:sink_tokens=0,window:window=128:sink_tokens=0,lightning", f"out={file}"
    )
    assert done.returncode == 0, done.stderr
    rows = {row["attention"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == ["softmax", "window:window=64:sink_tokens=0", "window:window=128:sink_tokens=0", "lightning"]
    narrow, wide = (rows[f"window:window={n}:sink_tokens=0"] for n in (64, 128))
    assert narrow["density"] < wide["density"] < 1 == rows["softmax"]["density"]
    assert all(row["layer_ms"] > 0 and row["mixing_ms"] > 0 for row in rows.values())
    assert done.stdout.count("\n") == 2 + len(rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "said"),
    [("attentions=window:64", "'64' is not OPTION=VALUE"), ("attentions=windoww", "windoww"), ("length", "length")],
)
def test_a_wrong_argument_is_one_line_and_status_2(wrong, said):
    done = run(*SMALL, wrong)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
