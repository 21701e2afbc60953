"""scripts/generate.py as it is typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.evaluation.tiny_run import make_run, save_checkpoint, small_decoder
from zoo.cli import friendly_errors
from zoo.commands import generate
from zoo.config import ConfigError
from zoo.runs.loaded_run import open_run

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "generate.py"
NASTY = "it's \"one\", x=1, ${y} $HOME [a]{b: c} \\ \\' %d é水🎉 #\n\tdef f():\n"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def options(run_folder, **changes):
    config = OmegaConf.load(ROOT / "configs" / "generate.yaml")
    return OmegaConf.merge(config, {"run": str(run_folder), "device": "cpu", "max_new_tokens": 12}, changes)


def run_script(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": "", "LC_ALL": "C"}
    command = [sys.executable, str(SCRIPT), "device=cpu", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, timeout=120, env=environment)


@pytest.mark.slow
def test_any_prompt_is_printed_and_continued(run_folder, tmp_path):
    done = run_script(tmp_path, f"run={run_folder}", f"prompt={NASTY}", "max_new_tokens=12")
    assert done.returncode == 0, done.stderr.decode()
    expected = "".join(generate.continuation(options(run_folder), NASTY)) + "\n"
    assert done.stdout.decode("utf-8") == expected
    assert expected.startswith(NASTY)
    assert len(expected) > len(NASTY) + 1
    assert list(tmp_path.iterdir()) == []


def test_errors_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for argument, message in (
        ("seed=1", "run is not set"),
        (f"run={tmp_path}", "not a run folder"),
        ("top_p=2", "top_p=2: expected a number above 0 to 1, or null"),
        ("temperature=nan", "temperature=nan: expected a number >= 0"),
        ("max_new_tokens=1.5", "max_new_tokens=1.5: expected a whole number"),
        ("promt=x", "promt: unknown option; did you mean prompt?"),
        ("seeed=2", "seeed: unknown option; did you mean seed?"),
        ("checkpoint=newest", "checkpoint=newest: expected"),
        ("-m", "-m: expected KEY=VALUE"),
    ):
        with pytest.raises(SystemExit, match="2"), friendly_errors():
            generate.main(["device=cpu", argument])
        printed = capsys.readouterr()
        assert printed.err.startswith("error: ")
        assert message in printed.err
        assert (printed.err.count("\n"), printed.out) == (1, "")


def test_the_continuation_is_that_of_the_model(run_folder):
    run = open_run(run_folder)
    ids = [256, *"水 a".encode()]
    tokens = run.decoder.generate([ids], 12, temperature=0.8, seed=3, stop_token=256)[0]
    text = "".join(generate.continuation(options(run_folder, seed=3), "水 a"))
    assert text == "水 a" + bytes(tokens).decode("utf-8", "replace")


def test_an_empty_prompt_starts_from_the_document_token(run_folder):
    greedy = options(run_folder, temperature=0)
    assert len("".join(generate.continuation(greedy, ""))) > 0
    assert "".join(generate.continuation(options(run_folder, max_new_tokens=0), "")) == ""


def test_it_stops_at_the_document_token(tmp_path):
    run = make_run(tmp_path)
    decoder = small_decoder()
    decoder.head.weight = torch.nn.Parameter(torch.zeros(257, 16))
    decoder.config.__dict__["tie_embeddings"] = False
    tokenizer = open_run(run).trained.tokenizer
    with torch.no_grad():  # every logit is 0 but that of the document token, whose sign the hidden state decides
        hidden = decoder.hidden(torch.tensor([[256, 97]]))[0, -1]
        decoder.head.weight[256] = 9 * hidden
    save_checkpoint(run / "checkpoints" / "last.ckpt", decoder, tokenizer=tokenizer)
    assert "".join(generate.continuation(options(run, temperature=0, max_new_tokens=50), "a")) == "a"


def test_prompt_from_a_file(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(NASTY.encode())
    assert generate.read_prompt(None, str(file)) == NASTY
    assert generate.read_prompt("${x}", None) == "${x}"
    assert generate.read_prompt(None, None) == ""
    with pytest.raises(ConfigError, match="both given"):
        generate.read_prompt("a", str(file))
    file.write_bytes(b"ab\xff")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 2"):
        generate.read_prompt(None, str(file))
    with pytest.raises(ConfigError, match="not UTF-8"):
        generate.read_prompt("ab\udcff", None)
