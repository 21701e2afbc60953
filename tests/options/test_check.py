"""What a run is checked for before anything is read: devices, paths, sizes against memory, and saved configurations."""

from __future__ import annotations

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from tests.options.composing import composed
from zoo.cli import friendly_errors
from zoo.config import ConfigError
from zoo.options import check
from zoo.options.check import check_config, check_job
from zoo.options.unread import notes

GROUPS = ("attention", "data", "experiment", "match", "model", "optimizer", "schedule", "tokenizer", "trainer")
GIB = 2**30


def settled(text, **options):
    return check_config(composed(text, groups=GROUPS), **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schedule.pattern=3xlightnin", r"unknown attention 'lightnin'"),
        ("attention=window mixers.window.window=0", r"^mixers\.window: window=0: expected at least 1"),
        ("attention=gqa mixers.gqa.kv_heads=3", r"^mixers\.gqa: heads=4 is not divisible by kv_heads=3"),
        ("data=text data.path=/no/such/file", r"data\.path=/no/such/file"),
        (
            "data=wikitext2 data.path=/no/such.txt",
            r"data\.path=/no/such\.txt: expected a folder with the layout",
        ),
        ("data=fineweb_edu data.source.max_bytes=null", r"streamed without a budget"),
        ("share_heads.kv_heads=1 trainer.max_steps=5", r"share_heads\.steps=100 is more than the budget of 5 steps"),
        ("trainer.precision=16-mixed trainer.accelerator=cpu", r"trainer\.precision=16-mixed is for GPUs"),
    ],
)
def test_what_cannot_be_trained_is_refused_beforehand(text, message):
    with pytest.raises(ValueError, match=message) as raised:
        settled(text)
    assert "\n" not in str(raised.value)


def test_devices_are_asked_for_only_where_the_run_will_be(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"trainer\.accelerator=gpu: there is none here; expected auto or cpu"):
        settled("trainer.accelerator=gpu")
    assert settled("trainer.accelerator=gpu", here=False).trainer.accelerator == "gpu"


@pytest.mark.parametrize(
    ("text", "gib", "advice"),
    [
        ("model=1b", 4, "use a smaller model.width or model.depth."),
        ("trainer.batch_size=4096", 1, "trainer.micro_batch_size=26 would fit."),
        ("data.length=1e7", 1, "use a data.length below"),
        ("trainer.batch_size=4096 trainer.micro_batch_size=16", 1, None),
        ("trainer.batch_size=64 trainer.checkpoint_activations=true", 1, None),
        ("trainer.batch_size=64", 1, "trainer.micro_batch_size="),
    ],
)
def test_sizes_that_cannot_fit_are_refused_with_what_would(monkeypatch, text, gib, advice):
    monkeypatch.setattr(check, "device_memory", lambda accelerator: gib * GIB)
    if advice is None:
        settled(text)
        return
    with pytest.raises(ConfigError, match=r"this run needs .*; there are .*GiB on this machine") as raised:
        settled(text)
    assert advice in str(raised.value)


def test_what_is_advised_fits(monkeypatch):
    monkeypatch.setattr(check, "device_memory", lambda accelerator: GIB)
    with pytest.raises(ConfigError) as raised:
        settled("trainer.batch_size=4096")
    micro = int(str(raised.value).rpartition("micro_batch_size=")[2].split()[0])
    settled(f"trainer.batch_size={micro * 4} trainer.micro_batch_size={micro}")
    with pytest.raises(ConfigError):
        settled(f"trainer.batch_size={4 * micro + 4} trainer.micro_batch_size={micro + 1}")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_memory_that_is_short_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as left, friendly_errors():
        raise error
    line = capsys.readouterr().err
    assert left.value.code == 2 and line.startswith("error: out of memory") and line.count("\n") == 1


def test_other_runtime_errors_keep_their_traceback():
    with pytest.raises(RuntimeError), friendly_errors():
        raise RuntimeError("a bug")


@pytest.fixture
def run(tmp_path):
    """Folder of a run with a configuration that a test may change."""
    config = OmegaConf.to_container(composed("experiment=tiny", groups=GROUPS), resolve=True)

    def save(**changes):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
        return tmp_path

    save.config = config
    return save


def test_an_older_configuration_without_a_key_is_named_or_has_its_default(run):
    trainer = {k: v for k, v in run.config["trainer"].items() if k != "log_every"}
    folder = run(trainer=trainer)
    with pytest.raises(ConfigError, match=r"config\.yaml: trainer\.log_every is missing: expected a whole number >= 1"):
        check_job(composed(f"resume={folder}"), [f"resume={folder}"])
    del run.config["match"], run.config["share_heads"], run.config["sweep"]
    assert check_job(composed(f"resume={run()}"), [f"resume={folder}"]).trainer.max_steps == 20


def test_what_a_continued_run_changes_is_checked(run):
    folder = run()
    for text, message in (
        (f"resume={folder} trainer.max_steps=1.5", r"trainer\.max_steps=1\.5"),
        (f"init={folder} optimizer.lr=-1", r"optimizer\.lr=-1"),
        (f"init={folder} data.length=0", r"data\.length=0"),
        (f"resume={folder}x", "does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_job(composed(text), text.split())


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("attention=softmax mixers.gqa.kv_heads=2", "nothing reads mixers.gqa.kv_heads=2 (the layers are softmax)."),
        ("match.tolerance=0.1", "nothing reads match.tolerance=0.1 (match=none)."),
        ("optimizer.decay_fraction=0.1", "nothing reads optimizer.decay_fraction=0.1 (optimizer.schedule=cosine)."),
        (
            "optimizer.schedule=constant optimizer.final_factor=0",
            "optimizer.final_factor=0 (optimizer.schedule=constant)",
        ),
        ("trainer.max_tokens=1e6 trainer.max_steps=5", "trainer.max_steps=5 (trainer.max_tokens takes its place)"),
        ("share_heads.steps=5", "share_heads.steps=5 (share_heads.kv_heads=null)"),
        ("attention=gqa schedule.pattern=softmax", "attention=gqa (the layers are softmax)"),
        (
            "attention=window mixers.window.window=512",
            "mixers.window: a window of 512 tokens covers all 512 of data.length",
        ),
        ("optimizer.warmup_steps=300", "optimizer.warmup_steps=300 is not less than the budget of 300 steps"),
    ],
)
def test_what_nothing_reads_is_told_in_one_line(text, note):
    (line,) = notes(settled(text), text.split())
    assert note in line


@pytest.mark.parametrize(
    "text",
    [
        "attention=gqa mixers.gqa.kv_heads=2",
        "match=params match.tolerance=0.1",
        "match=params mixers.softmax.kv_heads=2",
        "schedule.pattern=attention+softmax mixers.softmax.gate=linear",
        "optimizer.schedule=wsd optimizer.decay_fraction=0.1",
        "attention=window mixers.window.window=128 optimizer.final_factor=0",
    ],
)
def test_what_is_read_is_not_told(text):
    assert notes(settled(text), text.split()) == []
