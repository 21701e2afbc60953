import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pytest

from zoo.data import Document
from zoo.data.documents import digest_documents

REPOSITORY = Path(__file__).resolve().parents[2]


class ListSource:
    """Documents from memory: the same for every split."""

    def __init__(self, *texts, name="list"):
        self.name, self.texts = name, texts

    def documents(self, split):
        for number, text in enumerate(self.texts):
            yield Document(f"{split}/{number}", text)

    def fingerprint(self, split):
        return digest_documents(self.documents(split))


@pytest.fixture
def list_source():
    return ListSource


def zstd(raw):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.fixture(params=PACK)
def suffix(request):
    """Each ending of compressed files."""
    return request.param


@pytest.fixture
def pack():
    """Compresses bytes for an ending."""
    return lambda suffix, raw: PACK[suffix](raw)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def write(tmp_path):
    """Writes files (text, bytes, or a list of jsonl rows) under a fresh folder, which it returns."""

    def write(**files):
        root = tmp_path / "corpus"
        for name, content in files.items():
            path = root / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, list):
                content = "".join(json.dumps(row) + "\n" for row in content)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return root

    return write


@pytest.fixture(scope="session")
def shared_data():
    root = Path(os.environ.get("ZOO_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not root.is_dir():
        pytest.skip("real text: no folder of shared data here, which ZOO_SHARED_DATA names")
    return root
