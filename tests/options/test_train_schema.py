"""Values of train.py that are refused, each in one line that names it, and values that are taken."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from tests.options.composing import composed
from zoo.config import CONFIGS, ConfigError
from zoo.options.train import TrainConfig, normalize, read_config

GROUPS = (
    "attention",
    "data",
    "experiment",
    "logger",
    "match",
    "model",
    "optimizer",
    "schedule",
    "tokenizer",
    "trainer",
)

WRONG = {
    "optimizer.lr=-1": "optimizer.lr=-1: expected a number > 0 (peak of the learning rate of the matrices).",
    "schedule.pattern=???": "schedule.pattern=???: expected a value; ??? stands for none.",
    "optimizer.lr=0": "optimizer.lr=0: expected a number > 0",
    "optimizer.lr=abc": "optimizer.lr=abc: expected a number > 0",
    "optimizer.lr=true": "optimizer.lr=true: expected a number > 0",
    "optimizer.lr=inf": "optimizer.lr=inf: expected a number > 0",
    "optimizer.lr=nan": "optimizer.lr=nan: expected a number > 0",
    "~optimizer.lr": "optimizer.lr is missing: expected a number > 0",
    "optimizer.weight_decay=-0.5": "optimizer.weight_decay=-0.5: expected a number >= 0",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9]: expected a list of 2, each a number from 0 to below 1",
    "optimizer.betas=[0.9,1]": "optimizer.betas=[0.9, 1]: expected a list of 2, each a number from 0 to below 1",
    "optimizer.schedule=cosin": "optimizer.schedule=cosin: expected one of cosine, wsd, constant",
    "optimizer.name=sgd": "optimizer.name=sgd: unknown optimizer; expected one of adamw, muon",
    "optimizer.name=adamw": "optimizer.embedding_lr: unknown option",
    "optimizer.warmup_steps=-1": "optimizer.warmup_steps=-1: expected a whole number >= 0",
    "trainer.max_steps=1.5": "trainer.max_steps=1.5: expected a whole number >= 1, or null",
    "trainer.max_steps=ten": "trainer.max_steps=ten: expected a whole number",
    "trainer.max_steps=null": "no budget: set trainer.max_steps or trainer.max_tokens.",
    "trainer.checkpoint_every=1.5": "trainer.checkpoint_every=1.5: expected a whole number",
    "trainer.validate_every=0": "trainer.validate_every=0: expected a whole number >= 1",
    "trainer.log_every=0": "trainer.log_every=0: expected a whole number",
    "trainer.devices=0": "trainer.devices=0: expected a whole number >= 1",
    "trainer.precision=64": "trainer.precision=64: expected one of auto, 32-true",
    "trainer.compile=1": "trainer.compile=1: expected true or false",
    "trainer.batch_size=3 trainer.micro_batch_size=2": "trainer.batch_size=3 is not divisible by",
    "trainer=fsdp optimizer=muon": "trainer.strategy=fsdp shards matrices, which optimizer=muon needs whole",
    "schedule.patch=1": "schedule.patch=1: expected text, or null",
    "schedule.patch=0": "schedule.patch=0: expected text, or null",
    "schedule=sandwich schedule.k=-1": "schedule.k=-1: expected a whole number from 0 to 1024, or null",
    "model.depth=0": "model.depth=0: expected a whole number from 1 to 1024",
    "model.width=256.5": "model.width=256.5: expected a whole number",
    "model.separators=x": "model.separators=x: expected a list",
    "model.style=gpt": "model.style=gpt: expected one of llama, transnormer",
    "seed=null": "seed=null: expected a whole number from 0 to 4294967295",
    "seed=-1": "seed=-1: expected a whole number",
    "data.length=0": "data.length=0: expected a whole number",
    "data.path=BOOKS": "data.path=BOOKS: data=stdlib reads no path; choose data=text",
    "data.source.kind=os.system": "data.source.kind=os.system: unknown data source; expected one of hub, stdlib, text",
    "data.source.foo=1": "data.source.foo: unknown option; expected one of data.source.root",
    "data=text data.source.text_column=3": "data.source.text_column=3: expected text",
    "data=recall_mix data.recall.share=2": "data.recall.share=2: expected a number from 0 to 1",
    "data=recall_mix data.recall.tasks.mqar.pairs=x": "data.recall.tasks.mqar.pairs=x: expected a whole number",
    "data=recall_mix data.recall.tasks.mqar.weight=-1": "data.recall.tasks.mqar.weight=-1: expected a number >= 0",
    "data=recall_mix data.recall.tasks.mqar.variants=[x]": "data.recall.tasks.mqar: mqar has no variant 'x'",
    "tokenizer.vocab_size=10": "tokenizer.vocab_size=10: expected a whole number from 257",
    "tokenizer.kind=words": "tokenizer.kind=words: expected one of bytes, bpe, pretrained",
    "logger=wandb logger.wandb.mode=maybe": "logger.wandb.mode=maybe: expected one of online, offline, disabled",
    "match.tolerance=-1": "match.tolerance=-1: expected a number > 0",
    "match.tolerance=null": "match.tolerance=null: expected a number > 0",
    "match.quantity=speed": "match.quantity=speed: expected one of params, flops, cache",
    "match.context=0": "match.context=0: expected a whole number >= 1",
    "match.step=1.5": "match.step=1.5: expected a whole number >= 1",
    "mixers.window.window=x": "mixers.window.window=x: expected a whole number",
    "mixers.window.windows=3": "mixers.window.windows: unknown option; did you mean mixers.window.window?",
    "mixers.window.rope=1": "did you mean mixers.window.rope_theta or mixers.window.rope_fraction?",
    "mixers.window.sinks=1": "did you mean mixers.window.sink_tokens or mixers.window.sink_logits?",
    "mixers.window.width=64": "mixers.window.width: unknown option",
    "mixers.mine.name=windo": "mixers.mine.name=windo: unknown attention; did you mean window?",
    "mixers.window=3": "mixers.window=3: expected options below it",
    "share_heads=3": "share_heads=3: expected options below it, or null",
    "share_heads.steps=0": "share_heads.steps=0: expected a whole number >= 1",
    "trainer=fsdp optimizer=adamw share_heads.kv_heads=1": "share_heads needs whole weights",
    "share_heads.method=median": "share_heads.method=median: expected one of mean, first, svd",
    "foo=1": "foo: unknown option; expected one of attention, schedule",
    "optimizer.lrr=1": "optimizer.lrr: unknown option; did you mean optimizer.lr?",
    "seed=x model.width=-1 optimizer.lr=-1 data.length=0": "; and 1 more.",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_value_is_refused_in_one_line(text):
    with pytest.raises(ConfigError) as raised:
        read_config(composed(text, groups=GROUPS))
    line = str(raised.value)
    assert WRONG[text] in line and "\n" not in line and len(line) < 600


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("trainer.max_steps=1e3", "trainer.max_steps", 1000),
        ("model.width=256.0", "model.width", 256),
        ("data.val_tokens=1e3", "data.val_tokens", 1000),
        ("mixers.window.window=1e2", "mixers.window.window", 100),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("trainer.devices=auto", "trainer.devices", "auto"),
        ("trainer.devices=[0,1]", "trainer.devices", [0, 1]),
        ("logger=wandb logger.wandb.entity=me", "logger.wandb.entity", "me"),
    ],
)
def test_a_value_is_taken_as_it_is_meant(text, key, value):
    config = composed(text, groups=GROUPS)
    found = OmegaConf.select(normalize(config, read_config(config)), key)
    assert found == value and type(found) in (type(value), type(OmegaConf.create([])))


def test_normalizing_keeps_what_refers_to_other_options():
    config = composed("data=text data.path=a seed=1e3", groups=GROUPS)
    settled = normalize(config, read_config(config))
    settled.data.path = "b"
    assert settled.data.source.path == "b" and settled.seed == 1000 and config.seed == 1000.0


def _fields(model, path=""):
    from zoo.schema.messages import models_below

    for name, field in model.model_fields.items():
        yield f"{path}{name}", field
        for below in models_below(field.annotation):
            yield from _fields(below, f"{path}{name}.")


def test_every_option_has_a_meaning():
    assert [path for path, field in _fields(TrainConfig) if not field.description] == []


def test_every_option_stands_in_a_file():
    """A value without a file has no default that anybody could read."""
    text = " ".join(p.read_text() for p in CONFIGS.rglob("*.yaml"))
    missing = [path for path, _ in _fields(TrainConfig) if f"{path.rpartition('.')[2]}:" not in text]
    assert missing == ["data.recall.tasks"] or not missing
