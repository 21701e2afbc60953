"""Paths on command lines: any that a file system allows, and commands that can be pasted."""

import os
import random
import shlex
import subprocess
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.tiers import in_ci
from zoo.config import CONFIGS, load_run_config, register_mixers
from zoo.paths import (
    PATH_KEYS,
    ROOT,
    command,
    expand,
    literal,
    matches,
    program_command,
    read_path,
    shown,
    split_command,
    split_paths,
    take_paths,
    take_text,
)

NASTY = (
    "runs/a=b, c",
    "it's",
    'a "quoted" name',
    "C:\\x\\y",
    "ends in \\",
    "ünï/{cödé}[1](2)",
    "水 🎉",
    " blanks around ",
    "#hash; rm $HOME & `x` | <y> ! *",
    "${data.name}",
    "\\${x} \\\\${y",
    "caf\udce9",
    "two\nlines\t",
    "a: b",
    "choice(a,b)",
    "[a,b",
    "-m",
    "@%+!?",
)


def composed(*arguments, program="train"):
    register_mixers()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(program, take_paths(arguments))


@pytest.mark.parametrize("path", [*NASTY[:4], *in_ci(*NASTY[4:])])
def test_a_path_stands_for_itself_with_any_characters(path):
    config = composed(f"resume={path}", f"+init={path}", "data=text", f"data.path={path}", f"data.cache_dir={path}")
    places = config.resume, config.init, config.data.path, config.data.source.path, config.data.cache_dir
    assert places == (path,) * 5
    assert yaml.safe_load(OmegaConf.to_yaml(config, resolve=True))["data"]["source"]["path"] == path
    config = composed(f"run={path}", f"out={path}", "task=perplexity", f"task.path={path}", program="eval")
    assert (config.run, config.out, config.task.path) == (path,) * 3


@pytest.mark.slow
def test_random_paths_come_through_hydra_and_a_saved_configuration(tmp_path):
    draw = random.Random(0)
    for _ in range(300):
        path = "".join(draw.choices("ab/ ,=()[]{}#'\"~$\\:;\n*?&|<>!%@^ü\udce9", k=draw.randint(1, 9)))
        path = "x" + path.replace("$", draw.choice(("$", "${")))
        override = OverridesParser.create().parse_overrides(take_paths([f"data.path={path}"]))[0]
        node = OmegaConf.create({"data": {"path": override.value(), "source": "${data.path}"}, "model": {}})
        assert node.data.path == node.data.source == path
        (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(node, resolve=True), encoding="utf-8")
        assert load_run_config(tmp_path).data.source == path


def test_home_folders_are_expanded_and_other_tildes_are_not(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert composed("resume=~/x").resume == str(tmp_path / "x")
    assert composed("resume=a/~/x").resume == "a/~/x"
    for own in ("~$draft.txt", "./~", "./~/x", "~nobody-of-this-name/x"):  # names like any other
        assert str(expand(composed(f"resume={own}").resume)) == str(tmp_path / own)
    assert composed(f"run=~/a,{tmp_path}", program="eval").run == f"~/a,{tmp_path}"  # a list, cut later


def test_null_is_no_path_and_quotes_are_those_of_hydra_unless_a_path_has_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert composed("resume=null").resume is None and composed("resume=").resume == ""
    assert composed("resume=./null").resume == "./null" and os.path.samefile(composed("resume=.").resume, ".")
    for own in ("'a=b'", '"a=b"'):
        assert composed(f"resume={own}").resume == read_path(own) == "a=b"
        (tmp_path / own).mkdir()
        assert composed(f"resume={own}").resume == read_path(own) == own
    assert read_path("a, 'x'") == "a, 'x'" and read_path("'") == "'"
    assert composed("run=[a,b]", program="eval").run == ["a", "b"]
    (tmp_path / "[a,b]").mkdir()
    assert composed("run=[a,b]", program="eval").run == "[a,b]"


def test_lists_are_cut_at_commas_but_those_of_a_path_that_exists(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "a,b", " c", "d,"):
        (tmp_path / name).mkdir()
    assert split_paths("a,x, y ,") == ["a", "x", "y"]
    assert split_paths("a,b") == ["a,b"] and split_paths("x,a,b,a") == ["x", "a,b", "a"]
    assert split_paths(" c,d,,a") == [" c", "d,", "a"] and split_paths("") == []
    assert take_paths(["-m", "data.path=a,b,x"]) == ["-m", "data.path='a,b','x'"]
    assert take_paths(["data.path=a,b,x"]) == ["data.path='a,b,x'"]
    assert take_paths(["-m", "data.path=choice(a,x)"]) == ["-m", "data.path=choice(a,x)"]
    assert take_paths(["-m", "run=a,x", "seed=1,2"]) == ["-m", "run='a,x'", "seed=1,2"]


def test_only_paths_are_quoted():
    others = ["trainer.max_steps=3", "schedule.pattern=a+b", "~data.path", "task=a,b", "+foo=[1]", "-m"]
    assert take_paths(others) == others
    assert all(take_paths([f"++{key}=a b"]) == [f"++{key}='a b'"] for key in PATH_KEYS)


@pytest.mark.parametrize("path", NASTY)
def test_a_printed_command_is_read_by_a_shell_as_what_it_was(path):
    words = ["printf", "%s\\0", f"run={path}", path, "plain"]
    line = command(*words)
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", line], capture_output=True)
    assert [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]] == words[2:]
    assert split_command(line) == words
    if path.isprintable():
        assert shlex.split(line) == words


def test_a_printed_command_starts_the_program_from_where_it_is_printed(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert program_command("eval.py", "run=a b") == "python eval.py 'run=a b'"
    monkeypatch.chdir(tmp_path)
    assert split_command(program_command("eval.py", "run=a b")) == ["python", str(ROOT / "eval.py"), "run=a b"]


@pytest.mark.parametrize("folder", ["a [1]", "b*", "c[", "d?/[x] ü"])
def test_a_glob_below_a_folder_whose_name_looks_like_one(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("x.txt", "y.txt", "z.md", "deep/w.txt"):
        file = tmp_path / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text")
    assert matches(f"{folder}/*.txt") == [f"{folder}/x.txt", f"{folder}/y.txt"]
    assert len(matches(f"{tmp_path}/{folder}/**/*.txt")) == 3 and matches(f"{folder}/*.csv") == []
    assert split_paths(f"{folder}/[xy].txt,b") == [f"{folder}/[xy].txt", "b"]
    assert matches("*.none") == []


def test_text_that_is_taken_as_typed_and_text_that_any_file_can_hold():
    given = ["run=x", "prompt=def f(a, b='c'):\n  ${x}", "seed=1"]
    assert take_text(given, "prompt") == (given[1].removeprefix("prompt="), ["run=x", "seed=1"])
    assert take_text(["run=x"], "prompt") == (None, ["run=x"])
    assert shown("caf\udce9/ü") == "caf\\xe9/ü" and shown("\ud800") == "\\ud800"
    assert list(OmegaConf.create(literal({"a": ["${x}", 1, None]})).a) == ["${x}", 1, None]


def test_a_name_that_is_not_utf_8_can_be_printed():
    code = "from zoo.paths import print_any_name; print_any_name(); print('caf\\udce9 \xfc')"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0 and done.stdout.decode() == "caf\\udce9 ü\n"
