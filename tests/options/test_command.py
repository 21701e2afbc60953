"""``train.py --help``, and a command line that is checked as a whole."""

from __future__ import annotations

import re

import pytest

from tests.options.composing import base
from tests.tiers import in_ci
from zoo import mixers
from zoo.config import CONFIGS, ConfigError, to_dict
from zoo.options.command import check_command, train_help


def paths(node, place=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from paths(value, f"{place}{key}.")
        else:
            yield f"{place}{key}"


@pytest.fixture(scope="module")
def text():
    return train_help([])


def test_help_tells_every_option_with_its_default_its_meaning_and_what_it_takes(text):
    config = to_dict(base("train"))
    del config["mixers"], config["attention"], config["match"]["reference"]
    for path in paths(config):
        assert re.search(rf"^  {re.escape(path)}=", text, re.MULTILINE), path
    squeezed = " ".join(text.split())
    assert "trainer.max_steps=300 budget in optimizer steps; a whole number >= 1, or null" in squeezed
    assert "optimizer.schedule=cosine how the rate falls" in squeezed
    assert "options of attention=lightning; add attention=NAME for another one" in squeezed
    assert max(map(len, text.splitlines())) <= 120


def test_help_offers_the_files_that_can_be_chosen_and_nothing_else(text):
    groups = {m[1]: m[2] for m in re.finditer(r"^  ([\w/]+)=\w+ +(.*(?:\n {20,}.*)*)", text, re.MULTILINE)}
    for group in ("attention", "data", "data/recall", "sweep", "experiment", "optimizer"):
        names = sorted(p.stem for p in (CONFIGS / group).glob("*.yaml") if p.stem != "base")
        assert sorted(re.split(r",\s+", groups[group])) == names
    assert not {"task", "hardware"} & set(groups)


@pytest.mark.parametrize("name", ["lightning", *in_ci(*(name for name in mixers.names() if name != "lightning"))])
def test_help_says_what_every_option_of_an_attention_means(name):
    config = to_dict(base("train", f"attention={name}"))
    squeezed = " ".join(train_help([f"attention={name}"]).split())
    for option in config["mixers"][name]:
        found = re.search(rf"mixers\.{name}\.{option}=\S+(?: \S+\])? (.+?)(?:;| mixers\.|$)", squeezed)
        assert found and len(found[1]) > 3, option


def test_help_and_errors_leave_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        check_command(["--help", "attention=window"])
    assert left.value.code == 0 and "mixers.window.window=256" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"seed=-1: expected"):
        check_command(["-m", "seed=0,-1"])
    check_command(["experiment=tiny", "mixers.gqa.kv_heads=2"])
    assert capsys.readouterr().err == "note: nothing reads mixers.gqa.kv_heads=2 (the layers are lightning).\n"
    assert list(tmp_path.iterdir()) == []
