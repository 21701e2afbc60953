"""scripts/plan.py as it is typed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.config import register_mixers

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "plan.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("plan_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks for what annotations name
    spec.loader.exec_module(module)
    return module


def run(script, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["plan.py", *arguments])
    script.main()
    return capsys.readouterr().out


def test_a_plan_is_printed_written_and_drawn(tmp_path):
    arguments = ["attention=gqa", "context=32768", "batch=8", "hardware=h200", "attentions=gqa,3xlightning+softmax"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, f"out={tmp_path / 'made'}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    plan = json.loads((tmp_path / "made" / "plan.json").read_text())
    assert [phase["name"] for phase in plan["phases"]] == ["train", "prefill", "decode"]
    assert plan["layers"] == ["gqa"] * 4 and plan["request"]["batch"] == 8
    train, _, decode = plan["phases"]
    assert (train["bound"], decode["bound"]) == ("compute", "memory")
    assert decode["seconds"] == sum(decode["traffic"].values()) / 4.8e12
    assert train["seconds"] == train["flops"] / 989e12
    assert train["flops"] == 3 * 8 * 32768 * plan["cost"]["flops_per_token"]
    for word in ("train", "prefill", "decode", "ridge 206 FLOP/B", "tiles", "compute", "memory", "causal"):
        assert word in done.stdout
    assert (tmp_path / "made" / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_options_mean_what_they_mean_in_training(script, monkeypatch, capsys):
    register_mixers()
    config, decoder = script.build(
        ["schedule.pattern=3xattention+softmax", "mixers.gqa.kv_heads=1", "attention=gqa"], 0
    )
    assert decoder.config.layer_types == ["gqa"] * 3 + ["softmax"] and decoder.layers[0].mixer.kv_heads == 1
    assert decoder.config.vocab_size == config.tokenizer.vocab_size
    _, bytes_decoder = script.build(["tokenizer=bytes"], None)
    assert bytes_decoder.config.vocab_size == 257
    text = run(script, monkeypatch, capsys, "out=", "dtype=int8", "hardware=edge_npu", "hardware.on_chip=4096")
    assert "nothing fits" in text
    phases = [line.split()[0] for line in text.splitlines() if " memory " in line or " compute " in line]
    assert phases == ["prefill", "decode"]
    text = run(script, monkeypatch, capsys, "out=", "attention=window", "trainer.checkpoint_activations=true")
    assert "causal: by its windows alone a token meets 1,021 tokens after 4 layers" in text and "4 x forward" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hardware=abacus"], "hardware=abacus: expected one of .*h200"),
        (["context=0"], "context=0: expected a whole number >= 1"),
        (["batch=many"], "batch=many"),
        (["dtype=int4"], "dtype=int4: expected one of auto, fp32"),
        (["attention=nope"], "nope[\\s\\S]*softmax"),
        (["bogus=1"], "bogus: unknown option; expected one of context, .*hardware.*trainer"),
        (["contxt=1"], r"contxt: unknown option; did you mean context\?"),
        (["model.widht=64"], r"model\.widht: unknown option; did you mean model\.width\?"),
        (["model.width=0"], "model.width=0: expected"),
        (["hardware=cpu", "dtype=fp8"], "dtype=fp8: .* has"),
        (["tokenizer=pretrained"], "vocab=NUMBER"),
        (["attentions=softmax,nope", "out=/nonexistent"], "nope"),
        (["textbook=True"], "textbook=True: expected true or false"),
        (["textbook=yes"], "textbook=yes: expected true or false"),
    ],
)
def test_errors_say_what_is_expected(script, monkeypatch, capsys, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(script, monkeypatch, capsys, *(["out="] if "out=/nonexistent" not in arguments else []), *arguments)


def test_textbook_answers_are_printed(script, monkeypatch, capsys):
    text = run(script, monkeypatch, capsys, "textbook=true")
    assert "128 MiB" in text and "97.5 % sparse" in text and "33 layers" in text
