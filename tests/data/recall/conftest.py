import pytest

from zoo.data import TextSource, build_tokenizer
from zoo.data.recall.encoder import Encoder
from zoo.data.recall.haystack import NoiseHaystack

TEXT = "The number for grey-otter is 4821734.\nWhere is the red apple? It is in the kitchen.\n" * 20


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """Encoders by name: bytes, and a small BPE, whose tokens have several letters."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "train").mkdir()
    (folder / "train" / "0.txt").write_text(TEXT)
    source = TextSource(str(folder))
    specs = {"bytes": {"kind": "bytes"}, "bpe": {"kind": "bpe", "vocab_size": 330}}
    return {name: Encoder(build_tokenizer(spec, source, folder / "cache")) for name, spec in specs.items()}


@pytest.fixture(params=["bytes", "bpe"])
def encoder(request, encoders):
    return encoders[request.param]


@pytest.fixture
def noise(encoder):
    return NoiseHaystack(encoder)
