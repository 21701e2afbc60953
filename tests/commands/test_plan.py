"""scripts/plan.py as it is typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.commands import plan
from zoo.config import register_mixers

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "plan.py"


def run(capsys, *arguments):
    plan.main(list(arguments))
    return capsys.readouterr().out


@pytest.mark.slow
def test_a_plan_is_printed_written_and_drawn(tmp_path):
    arguments = ["attention=gqa", "context=32768", "batch=8", "hardware=h200", "attentions=gqa,3xlightning+softmax"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, f"out={tmp_path / 'made'}"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "made" / "plan.json").read_text())
    assert [phase["name"] for phase in written["phases"]] == ["train", "prefill", "decode"]
    assert written["layers"] == ["gqa"] * 4 and written["request"]["batch"] == 8
    train, _, decode = written["phases"]
    assert (train["bound"], decode["bound"]) == ("compute", "memory")
    assert decode["seconds"] == sum(decode["traffic"].values()) / 4.8e12
    assert train["seconds"] == train["flops"] / 989e12
    assert train["flops"] == 3 * 8 * 32768 * written["cost"]["flops_per_token"]
    for word in ("train", "prefill", "decode", "ridge 206 FLOP/B", "tiles", "compute", "memory", "causal"):
        assert word in done.stdout
    assert (tmp_path / "made" / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_options_mean_what_they_mean_in_training(capsys):
    register_mixers()
    config, decoder = plan.build(["schedule.pattern=3xattention+softmax", "mixers.gqa.kv_heads=1", "attention=gqa"], 0)
    assert decoder.config.layer_types == ["gqa"] * 3 + ["softmax"] and decoder.layers[0].mixer.kv_heads == 1
    assert decoder.config.vocab_size == config.tokenizer.vocab_size
    _, bytes_decoder = plan.build(["tokenizer=bytes"], None)
    assert bytes_decoder.config.vocab_size == 257
    text = run(capsys, "out=", "dtype=int8", "hardware=edge_npu", "hardware.on_chip=4096")
    assert "nothing fits" in text
    phases = [line.split()[0] for line in text.splitlines() if " memory " in line or " compute " in line]
    assert phases == ["prefill", "decode"]
    text = run(capsys, "out=", "attention=window", "trainer.checkpoint_activations=true")
    assert "causal: by its windows alone a token meets 1,021 tokens after 4 layers" in text and "4 x forward" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hardware=abacus"], "hardware=abacus: expected one of .*h200"),
        (["context=0"], "context=0: expected a whole number >= 1"),
        (["batch=many"], "batch=many"),
        (["dtype=int4"], "dtype=int4: expected one of auto, fp32"),
        (["attention=nope"], "nope[\\s\\S]*softmax"),
        (["bogus=1"], "bogus: unknown option; expected one of plugins, context, .*hardware.*trainer"),
        (["contxt=1"], r"contxt: unknown option; did you mean context\?"),
        (["model.widht=64"], r"model\.widht: unknown option; did you mean model\.width\?"),
        (["model.width=0"], "model.width=0: expected"),
        (["hardware=cpu", "dtype=fp8"], "dtype=fp8: .* has"),
        (["tokenizer=pretrained"], "vocab=NUMBER"),
        (["attentions=softmax,nope", "out=/nonexistent"], r"^attentions='nope': unknown attention 'nope'; expected"),
        (["textbook=True"], "textbook=True: expected true or false"),
        (["textbook=yes"], "textbook=yes: expected true or false"),
    ],
)
def test_errors_say_what_is_expected(capsys, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(capsys, *(["out="] if "out=/nonexistent" not in arguments else []), *arguments)


def test_textbook_answers_are_printed(capsys):
    text = run(capsys, "textbook=true")
    assert "128 MiB" in text and "97.5 % sparse" in text and "33 layers" in text
