"""The ledger survives crashes, and knows runs by what they compute."""

import json
from dataclasses import replace

import pytest

from zoo.options.composing import compose_config
from zoo.sweeps.ledger import FILE, Ledger, LedgerEntry, config_key, read_ledger

ENTRY = LedgerEntry("k1", "a", 0, ["x=1"], "arms/a/seed-0", "started")


def test_the_last_line_of_a_key_counts(tmp_path):
    ledger = Ledger(tmp_path)
    other = replace(ENTRY, key="k2", arm="b", folder="arms/b/seed-0", status="failed", reason="héads=4\nis wrong")
    for entry in (ENTRY, other, replace(ENTRY, status="trained"), replace(ENTRY, status="finished", seconds=2.5)):
        ledger.add(entry)
    assert len((tmp_path / FILE).read_text(encoding="utf-8").splitlines()) == 4
    found = read_ledger(tmp_path)
    assert found == ledger.entries and list(found) == ["k2", "k1"]
    assert found["k1"].status == "finished" and found["k1"].seconds == 2.5 and found["k2"] == other
    assert ledger.owner("arms/a/seed-0") == found["k1"] and ledger.owner("arms/c/seed-0") is None
    assert set(json.loads((tmp_path / FILE).read_text(encoding="utf-8").splitlines()[0])) >= {
        *("key", "arm", "seed", "overrides", "folder", "status", "reason", "time", "seconds")
    }


@pytest.mark.parametrize("kept", [0, 1, 30, -1])
def test_a_line_cut_by_a_crash_is_ignored_and_the_next_is_not_lost(tmp_path, kept):
    ledger = Ledger(tmp_path)
    ledger.add(ENTRY)
    ledger.add(replace(ENTRY, status="finished"))
    first, second = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(first + second[:kept])
    whole = kept == -1  # only the end of the line is missing
    assert read_ledger(tmp_path)["k1"].status == ("finished" if whole else "started")
    Ledger(tmp_path).add(replace(ENTRY, key="k2"))
    assert {key: entry.status for key, entry in read_ledger(tmp_path).items()} == {
        "k1": "finished" if whole else "started",
        "k2": "started",
    }


def test_lines_of_something_else_are_ignored(tmp_path):
    strange = ["[]", "7", '{"key": "k"}', "\x00\x00", json.dumps({**ENTRY.__dict__, "status": "odd"})]
    (tmp_path / FILE).write_text("\n".join(strange) + "\n")
    assert read_ledger(tmp_path) == {} and read_ledger(tmp_path / "nowhere") == {}


@pytest.mark.slow
def test_the_key_is_that_of_the_computation():
    tiny = ["experiment=tiny"]
    key = config_key(compose_config("train", tiny))
    for same in (["logger=tensorboard"], ["data.cache_dir=/x", "data.num_workers=2"], ["model.width=64"]):
        assert config_key(compose_config("train", [*tiny, *same])) == key
    for other in (["trainer.max_steps=21"], ["seed=1"], ["mixers.lightning.gate=none"], ["match=flops"]):
        assert config_key(compose_config("train", [*tiny, *other])) != key
