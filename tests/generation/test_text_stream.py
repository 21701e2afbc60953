import random

import pytest

from zoo.data import build_tokenizer, encode_batch
from zoo.generation.text_stream import TextStream


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer({"kind": "bytes"}, None, "unused")


def test_no_piece_ends_inside_a_character(tokenizer):
    text = "aé水🎉\n👩\u200d🚀 z\ufffd!"
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in encode_batch(tokenizer, [text])[0].tolist()]
    assert "".join(pieces) + stream.finish() == text
    assert [piece for piece in pieces if piece][:4] == ["a", "é", "水", "🎉"]


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_bytes_join_to_the_whole(tokenizer, seed):
    draw = random.Random(seed)
    tokens = [draw.choice([draw.randrange(257), 0xF0, 0x9F, 0x8E, 0x89, 0x41]) for _ in range(60)]
    context = encode_batch(tokenizer, ["水"])[0].tolist()
    stream = TextStream(tokenizer, context)
    text = "".join(stream.push(token) for token in tokens) + stream.finish()
    assert text == tokenizer.backend_tokenizer.decode(tokens, skip_special_tokens=True)


def test_what_never_becomes_a_character_comes_at_the_end(tokenizer):
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in (0x41, 0xF0, 0x9F)] == ["A", "", ""]
    assert stream.finish() == "\ufffd"
