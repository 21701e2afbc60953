"""Hydra's own errors as one line with a near name, and what a command line asks for."""

from __future__ import annotations

import pytest

from tests.options.composing import base
from tests.tiers import in_ci
from zoo.config import ConfigError
from zoo.options.composing import compose_config, read_command

WRONG = {
    "optimizer.lrr=1": "optimizer.lrr: unknown option; did you mean optimizer.lr?",
    "max_steps=3": "max_steps: unknown option; did you mean trainer.max_steps?",
    "atention=softmax": "atention: unknown option; did you mean attention?",
    "mixers.windo.window=3": "mixers.windo.window: unknown option; did you mean mixers.window?",
    "attention=lightnin": "attention=lightnin: unknown choice; did you mean lightning?",
    "data/recall=mixx": "data/recall=mixx: unknown choice; did you mean mix?",
    "data=base": "data=base: unknown choice; expected one of fineweb_edu",
    "experiment=[tiny,small]": "experiment=small: unknown choice; did you mean small_recall",
    "model=null": "model=null: expected one of the files of configs/model: 125m, 1b",
    "optimizer={lr:3}": "optimizer={lr:3}: expected one of the files of configs/optimizer",
    "+optimizer.lr=1": "+optimizer.lr=1: optimizer.lr exists already: leave out the +.",
    "+data/recall=mix": "+data/recall=mix: data/recall has a choice already: leave out the +.",
    "optimizer.lr.x=1": "optimizer.lr.x: optimizer.lr is a single value and has no options below it.",
    "data.recall.share=1": "data.recall.share: data.recall is null and has no options: choose data/recall=mix or mqar",
    "~foo": "foo: unknown option; expected one of",
    "seed=1,2": "seed=1,2: several values are a multirun, which needs -m",
    "data.path=a=b": "data.path=a=b cannot be read: a value with such characters needs quotes",
    "lightning": "lightning: expected KEY=VALUE",
    "=3": "=3: expected KEY=VALUE",
    "--hepl": "--hepl: unrecognized arguments: --hepl",
}


@pytest.mark.parametrize("text", [*list(WRONG)[:6], *in_ci(*list(WRONG)[6:])])
def test_an_override_that_cannot_be_composed_is_named_in_one_line(text):
    with pytest.raises(ConfigError) as raised:
        compose_config("train", read_command([text]).jobs[0])
    line = str(raised.value)
    assert line.startswith(WRONG[text]) and "\n" not in line and "hydra.cc" not in line


def test_an_option_below_an_empty_place_is_told_with_its_plus():
    line = r"^task\.options\.hops: task\.options is empty, .* is added with a \+: \+task\.options\.hops=9\.$"
    with pytest.raises(ConfigError, match=line):
        compose_config("eval", ["task=vt", "task.options.hops=9"])
    assert compose_config("eval", ["task=vt", "+task.options.hops=9"]).task.options == {"hops": 9}


def test_every_job_of_a_multirun_is_known():
    command = read_command(["-m", "seed=0,1", "attention=softmax,gqa", "model.width=64"])
    assert command.multirun and command.jobs == [
        [f"seed={seed}", f"attention={name}", "model.width=64"] for seed in (0, 1) for name in ("softmax", "gqa")
    ]
    assert read_command(["-m", "data.length=range(1,4)"]).jobs == [[f"data.length={n}"] for n in (1, 2, 3)]
    assert read_command(["--cfg", "job", "seed=1"]).shows and read_command(["--help"]).help


def test_a_folder_of_the_users_own_is_searched(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\nwidth: 8\n")
    given = read_command(["--config-dir", str(tmp_path), "model=mine"])
    assert compose_config("train", given.jobs[0], given.config_dir).model.width == 8
    assert base("train").model.name == "nano"
