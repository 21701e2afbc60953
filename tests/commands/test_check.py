"""The command ``check``: a module of the current folder, its options, and the status."""

import sys

import pytest

from zoo.commands import check, run

MODULE = """
from torch import nn
class Shift(nn.Module):
    def __init__(self, d_model, n_heads, by=0):
        super().__init__()
        assert (d_model, n_heads) == (8, 2)
        self.by = by
    def forward(self, x):
        return x.roll(self.by, 1) + x.cumsum(1)
"""
SMALL = ["width=8", "heads=2", "longest=5", "compile=false"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "shifting_package.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("shifting_package", None)


def test_the_status_says_whether_a_check_fails(capsys):
    assert check.main(["shifting_package:Shift", *SMALL]) == 0
    assert capsys.readouterr().out.startswith("Shift: width 8, 0 parameters, evaluation mode, 1 to 5 tokens\n")
    assert check.main(["shifting_package:Shift", *SMALL, "by=-1"]) == 1
    assert "FAILED       T=2: changing token 1 changes output 0" in capsys.readouterr().out


def test_a_registered_attention_goes_by_its_name(capsys):
    assert check.main(["window", *SMALL, "window=3"]) == 0
    assert "FAILED" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "0 modules: expected one"),
        (["softmax", "gqa"], "2 modules: expected one"),
        (["shifting_package:Shift", "wdth=3"], "unexpected keyword argument 'wdth'; it takes d_model, n_heads, by"),
        (["shifting_package:Shift", "by=[1"], "by=[1: expected a number, true, false, null, a word or a list"),
        (["shifting_package:Shift"], "Shift(d_model=64, n_heads=4, by=1) raises AssertionError"),
        (["softmax", "longest=0"], "longest=0: expected a whole number >= 1"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        run("check", [*arguments, "by=1"] if arguments == ["shifting_package:Shift"] else arguments)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert message in said.err and said.err.count("\n") == 1
