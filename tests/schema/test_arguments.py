"""KEY=VALUE arguments of scripts: typed as their options say, refused in one line, explained by --help."""

from typing import Literal

import pytest

from zoo.config import ConfigError
from zoo.schema.arguments import Arguments, InputFile, OutputFile, OutputFolder, read_arguments
from zoo.schema.base import Count, Flag, Number, Positive, option


class Made(Arguments):
    length: Positive = option("tokens of a sequence", default=8192)
    widths: list[Positive] = option("of heads", default=[64, 128])
    kind: Literal["fast", "exact"] = option("of the measurement", default="fast")
    name: str = option("anything", default="")
    limit: Count | None = option("most; empty: all", default=None)
    rate: Number = option("of learning", gt=0, default=0.5)
    quick: Flag = option("fewer rounds", default=False)
    out: OutputFile | None = option("file", default=None)
    folder: OutputFolder | None = option("folder", default=None)
    source: InputFile | None = option("file", default=None)


def read(*arguments, **how):
    return read_arguments(Made, arguments, "Usage.", **how)


def test_values_are_typed():
    made, rest = read("length=1e3", "widths=3", "name=007", "limit=", "rate=2", "quick=true")
    assert rest == [] and made.model_dump(exclude_unset=True) == {
        "length": 1000, "widths": [3], "name": "007", "limit": None, "rate": 2.0, "quick": True
    }  # fmt: skip
    assert read("widths=1,2,1_000")[0].widths == read("widths=[1,2,1_000]")[0].widths == [1, 2, 1000]
    assert read("length=1", "length=2")[0].length == 2


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("length=1.5", "length=1.5: expected a whole number >= 1"),
        ("length=", "length=: expected a whole number >= 1"),
        ("length=inf", "length=inf: expected a whole number"),
        ("length", "length has no value: expected length=VALUE"),
        ("widths=1,x", r"widths=\[1, x\]: expected a list, each a whole number >= 1"),
        ("kind=slow", "kind=slow: expected one of fast, exact"),
        ("rate=nan", "rate=nan: expected a number > 0"),
        ("quick=1", "quick=1: expected true or false"),
        ("limit=-1", "limit=-1: expected a whole number >= 0, or null"),
        ("lenght=1", r"lenght: unknown option; did you mean length\?"),
        ("--fast", "--fast: unknown option"),
        ("out=.", "out=.: expected a file"),
        ("out=file/x", "out=file/x: .*file is not a folder"),
        ("folder=file", "folder=file: expected a folder"),
        ("source=none", "source=none: there is no such file"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, monkeypatch, argument, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        read(argument)


def test_other_arguments_are_kept_where_there_are_some(tmp_path):
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert read("x", str(odd), "length=2", rest="RUN_DIR")[1] == ["x", str(odd)]
    with pytest.raises(ConfigError, match="lenght"):
        read("lenght=2", rest="RUN_DIR")
    overrides = ["model.width=2", "+data.x=1", "~seed", "model=nano", "data/recall=mix"]
    assert read(*overrides, roots=("model", "data", "seed"))[1] == overrides
    with pytest.raises(ConfigError, match="modle"):
        read("modle.width=2", roots=("model",))


def test_help_says_every_option_and_ends(capsys):
    with pytest.raises(SystemExit, match="0"):
        read("length=x", "--help")
    text = capsys.readouterr().out
    assert text.startswith("Usage.\n\nOptions:\n")
    assert "    length=8192                   tokens of a sequence (a whole number >= 1)\n" in text
    assert "widths=64,128 " in text and "of the measurement (one of fast, exact)" in text and "limit= " in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_tilde_that_is_nobodys_home_is_a_name_like_any_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~nobody-of-this-name").write_text("x")
    given = ["out=~nobody-of-this-name.md", "folder=~no-such-user/x", "source=~nobody-of-this-name"]
    made = read(*given)[0]
    assert (made.out, made.folder, made.source) == (
        "~nobody-of-this-name.md",
        "~no-such-user/x",
        "~nobody-of-this-name",
    )
