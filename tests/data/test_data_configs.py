from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

import zoo.data
from zoo.data.datamodule import LanguageData
from zoo.data.sources.build import build_source

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml") if path.stem != "base")
TOKENIZERS = sorted(path.stem for path in (CONFIGS / "tokenizer").glob("*.yaml"))


def load(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(overrides=list(overrides))


def test_the_promised_names_exist():
    corpora = ["fineweb_edu", "openwebtext", "pg19", "stdlib", "text", "tinystories", "wikitext103", "wikitext2"]
    assert sorted([*corpora, "mqar", "recall_mix", "state_tracking"]) == DATA and TOKENIZERS == [
        "bpe",
        "bytes",
        "pretrained",
    ]


@pytest.mark.parametrize("name", DATA)
def test_data_sets(name, monkeypatch):
    monkeypatch.delenv("ZOO_CACHE", raising=False)
    config = load(f"+data={name}", "++data.path=/some/where").data
    assert config.name == name and config.length == 512 and config.isolate_documents is False
    assert config.cache_dir == "~/.cache/attention-zoo" and config.num_workers == 0
    source = build_source(config.source)
    assert type(source) is getattr(zoo.data, type(source).__name__)
    if name not in ("stdlib", "mqar", "recall_mix", "state_tracking"):
        assert source.path == "/some/where"
    if isinstance(source, zoo.data.HubSource):
        assert source.cache_dir == Path("~/.cache/attention-zoo").expanduser()
        with pytest.raises(zoo.data.DataError, match=r"data.path=/some/where: expected a folder"):
            list(source.documents("train"))


def test_the_cache_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    assert load("+data=wikitext2").data.source.cache_dir == str(tmp_path)


@pytest.mark.parametrize("name", ["bytes", "bpe"])
def test_tokenizers(name, list_source, cache):
    spec = load(f"+tokenizer={name}").tokenizer
    tokenizer = zoo.data.build_tokenizer(spec, list_source("some text " * 100), cache)
    assert tokenizer.eos_token == "<|endoftext|>"


def test_wikitext_by_its_preset(shared_data, cache):
    folder = shared_data / "hub" / "wikitext"
    if not folder.is_dir():
        pytest.skip("real text: no hub/wikitext in the folder of shared data")
    config = load("+data=wikitext2", f"++data.path={folder}", f"++data.cache_dir={cache}", "++data.length=64").data
    source = build_source(config.source)
    module = LanguageData(source, {"kind": "bytes"}, length=config.length, batch_size=2, cache_dir=config.cache_dir)
    module.prepare()
    assert len(module.stores["train"]) > 40 and len(module.stores["validation"]) > 2
