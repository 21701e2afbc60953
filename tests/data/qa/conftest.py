import pytest

from zoo.data import TextSource, build_tokenizer
from zoo.data.qa.records import QARecord
from zoo.data.recall.encoder import Encoder

THINGS = ("lamp", "desk", "coat", "boat", "gate", "drum", "vase", "bell")
COLORS = ("amber", "black", "cream", "denim", "ebony", "fawn", "green", "honey")


def paragraph(number):
    thing, color = THINGS[number % 8], COLORS[number % 8]
    more = " It was made by hand." * (1 + number % 3)
    return (
        f"This is story {number}. The {thing} in it is {color}.{more} Nobody knows who had it before {1900 + number}."
    )


def record(number, **changes):
    fields = {
        "id": f"r{number}",
        "question": f"What colour is the {THINGS[number % 8]}?",
        "answers": (COLORS[number % 8],),
        "paragraphs": (paragraph(number),),
        "where": f"file line {number + 1}",
    }
    return QARecord(**{**fields, **changes})


@pytest.fixture
def records():
    """Eight records, each with a paragraph of three to six sentences of its own."""
    return [record(number) for number in range(8)]


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "train").mkdir()
    (folder / "train" / "0.txt").write_text("\n".join(paragraph(number) for number in range(8)))
    specs = {"bytes": {"kind": "bytes"}, "bpe": {"kind": "bpe", "vocab_size": 330}}
    source = TextSource(str(folder))
    return {name: Encoder(build_tokenizer(spec, source, folder / "cache")) for name, spec in specs.items()}


@pytest.fixture(params=["bytes", "bpe"])
def encoder(request, encoders):
    return encoders[request.param]


@pytest.fixture
def make_record():
    return record
