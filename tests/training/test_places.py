"""Where a run reads and writes: refused runs leave no folder, moved data, loggers, disks that are full."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from zoo.cli import friendly_errors
from zoo.commands.train import main
from zoo.config import ConfigError, load_run_config
from zoo.files import WriteError, read_metrics, replace_file, replace_text
from zoo.model import CheckpointError
from zoo.options.continued import resumed_config
from zoo.training.monitoring.loggers import LocalLogger, build_loggers
from zoo.training.monitoring.remote_loggers import wandb_mode
from zoo.training.run import train

NASTY = "it's ${a} [1], {b} = #ü \udce9"


@pytest.mark.parametrize("arguments", [["resume=TYPO"], ["resume=~/TYPO"], ["init=TYPO"], ["data.path=TYPO"]])
def test_a_refused_run_leaves_nothing_behind(small_overrides, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["train.py"])
    own = [] if "=TYPO" in arguments[0] and "path" not in arguments[0] else small_overrides
    with pytest.raises(SystemExit) as ended:
        start([*own, *arguments])
    line = capsys.readouterr().err
    assert ended.value.code == 2 and "TYPO" in line and line.startswith("error: ") and line.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*") if path.name not in ("runs",)]


def start(arguments):
    with friendly_errors():
        main(arguments)


@pytest.mark.slow
def test_data_that_moved_are_taken_if_they_are_the_same(small, text_folder, tmp_path):
    folder, texts, moved = tmp_path / NASTY, tmp_path / "texts", tmp_path / f"moved {NASTY}"
    shutil.copytree(text_folder, texts)
    train(small(f"data.path={texts}", "trainer.max_steps=2"), folder)
    texts.rename(moved)
    config = taken(small, folder, moved, tmp_path / "cache")
    train(config, folder)
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "train/loss" in row] == [1, 2, 3]
    saved = load_run_config(folder)
    assert saved.data.path == saved.data.source.path == str(moved)
    (moved / "00.txt").write_text("another text")
    with pytest.raises(CheckpointError, match=r"has changed since its checkpoint was written: .*1 changed, 00.txt"):
        train(taken(small, folder, moved, tmp_path / "cache", 4), folder)


def taken(small, folder, path, cache, steps=3):
    """Configuration of ``resume=FOLDER data.path=PATH data.cache_dir=CACHE trainer.max_steps=STEPS``."""
    from zoo.paths import take_paths

    options = take_paths(
        [f"resume={folder}", f"data.path={path}", f"data.cache_dir={cache}", f"trainer.max_steps={steps}"]
    )
    return resumed_config(small(*options), options)


def test_a_folder_that_cannot_be_written_to_is_one_line(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"file/run could not be written: Not a directory. Set hydra.run.dir"):
        train(small(), tmp_path / "file" / "run")
    with pytest.raises(WriteError, match=r"could not be written: Not a directory. Set data.cache_dir"):
        train(small(f"data.cache_dir={tmp_path / 'file' / 'cache'}"), tmp_path / "run")


def test_a_full_disk_is_said_and_what_was_there_stays(tmp_path):
    file = tmp_path / "a.json"
    replace_text(file, "before")

    def fails(unfinished: Path):
        unfinished.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = r"a.json could not be written: space on the disk is short \(No space.*MiB are free\)\. Free some"
    with pytest.raises(WriteError, match=message) as raised:
        replace_file(file, fails)
    assert raised.value.__cause__.errno == errno.ENOSPC
    assert file.read_text() == "before" and os.listdir(tmp_path) == ["a.json"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has /dev/full, a disk that is always full")
def test_metrics_on_a_full_disk_are_one_line(tmp_path):
    logger = LocalLogger(tmp_path)
    logger.lines = Path("/dev/full")
    with pytest.raises(WriteError, match=r"/dev/full could not be written: space on the disk is short"):
        logger.log_metrics({"train/loss": 1.0}, 1)


def test_the_variable_of_wandb_counts_unless_a_mode_is_given(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert wandb_mode(None) == "online"
    for value, mode in (("offline", "offline"), ("disabled", "disabled"), ("dryrun", "offline"), ("", "online")):
        monkeypatch.setenv("WANDB_MODE", value)
        assert wandb_mode(None) == mode and wandb_mode("disabled") == "disabled"
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ConfigError, match=r"WANDB_MODE=ofline: expected one of online, offline"):
        wandb_mode(None)
    with pytest.raises(ConfigError, match=r"logger.wandb.mode=x: expected"):
        wandb_mode("x")


@pytest.mark.slow
def test_the_configuration_leaves_the_mode_of_wandb_to_its_variable(small, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(small("logger=wandb", "trainer.max_steps=1"), tmp_path / "run")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_a_logger_that_cannot_be_started_is_one_line(tmp_path, monkeypatch):
    def fails(self, **options):
        raise RuntimeError("no key\nlog in first")

    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger.__init__", fails)
    with pytest.raises(ConfigError, match=r"logger=wandb cannot be started: no key log in first.*WANDB_MODE=offline"):
        build_loggers(tmp_path, None, {"wandb": {"mode": "online"}}, {})
