"""Evaluations of text go on part by part after a stop, with what one that was never stopped finds."""

import json

import pytest

from tests.evaluation.tiny_run import make_run, save_checkpoint, small_decoder
from tests.tiers import named
from zoo.config import ConfigError
from zoo.evaluation.evaluate import evaluate_run
from zoo.evaluation.scoring import documents as scoring
from zoo.evaluation.scoring import stateful
from zoo.evaluation.tasks.base import build_task
from zoo.runs import corpus
from zoo.runs.loaded_run import open_run

TEXTS = {
    "train": ["one two three\n" * 20],
    "test": [letter * size for letter, size in zip("abcdef", range(60, 120, 10))],
}
TASKS = {
    "window": ({"name": "perplexity"}, 6),
    "sliding": ({"name": "perplexity", "stride": 4}, 6),
    "stateful": ({"name": "perplexity", "mode": "stateful"}, 6),
    "position": ({"name": "perplexity_position", "length": 60}, 6),
    "context": ({"name": "perplexity_context", "lengths": [4, 8, 16], "target": 4}, 3),
}
TIMES = ("wall_s", "tok_s")


@pytest.fixture
def passes(monkeypatch):
    """Inputs of each forward pass; a stop like a Ctrl-C comes once ``limit`` inputs are read."""
    seen = {"inputs": 0, "limit": None}

    def counting(real):
        def score(decoder, batch, *rest):
            if seen["limit"] is not None and seen["inputs"] >= seen["limit"]:
                raise KeyboardInterrupt
            seen["inputs"] += sum(len(piece) for piece in batch)
            return real(decoder, batch, *rest)

        return score

    monkeypatch.setattr(scoring, "score_pieces", counting(scoring.score_pieces))
    monkeypatch.setattr(stateful, "_read", counting(stateful._read))
    monkeypatch.setattr(corpus, "PART", 50)
    return seen


def evaluated(folder, options, **others):
    content = evaluate_run(open_run(folder), build_task({**options, **others})).results.to_dict()
    records = [{key: value for key, value in record.items() if key not in TIMES} for record in content["results"]]
    return json.dumps([records, content["protocol"], content["warnings"]])


@pytest.mark.parametrize("task", named(TASKS, "window"))
def test_text_is_scored_part_by_part(tmp_path, passes, task):
    options, parts = task
    folder = make_run(tmp_path, texts=TEXTS)
    whole = evaluated(folder, options, fresh=True)
    total, cells = passes["inputs"], folder / "eval" / "cells"
    assert len(list(cells.iterdir())) == parts
    for cell in cells.iterdir():
        cell.unlink()
    passes.update(inputs=0, limit=total // 4)
    with pytest.raises(KeyboardInterrupt):
        evaluated(folder, options)
    finished = len(list(cells.iterdir()))
    assert 0 < finished < parts
    passes.update(inputs=0, limit=None)
    assert evaluated(folder, options) == whole
    assert 0 < passes["inputs"] < total
    passes.update(inputs=0)
    assert evaluated(folder, options, batch_tokens=7) == whole and passes["inputs"] == 0
    assert evaluated(folder, options, fresh=True) == whole and passes["inputs"] == total


@pytest.mark.slow
def test_parts_of_other_text_windows_and_models_are_not_mixed_up(tmp_path, passes):
    folder = make_run(tmp_path, texts=TEXTS)

    def read(**others):
        passes.update(inputs=0)
        evaluated(folder, {"name": "perplexity"}, **others)
        return passes["inputs"]

    assert read() > 0 and read() == 0
    for others in ({"length": 5}, {"stride": 4}, {"mode": "stateful"}, {"split": "train"}):
        assert read(**others) > 0 and read(**others) == 0
    assert read(max_documents=2) == 0  # whole parts of what was read before
    known = open_run(folder).trained.tokenizer
    save_checkpoint(folder / "checkpoints" / "last.ckpt", small_decoder(seed=5), tokenizer=known)
    assert read() > 0


@pytest.mark.parametrize("sizes", [[], [1], [50], [49, 1], [100, 100], [10] * 23, [0, 0]])
def test_parts_hold_every_document_once(monkeypatch, sizes):
    monkeypatch.setattr(corpus, "PART", 50)
    parts = list(corpus.cut_parts(sizes))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(sizes)))
    assert all(sum(sizes[part]) >= 50 for part in parts[:-1]) and all(part.stop > part.start for part in parts)


@pytest.mark.parametrize("name", ["perplexity", "perplexity_position", "perplexity_context", "vt"])
def test_fresh_is_true_or_false(tmp_path, name):
    with pytest.raises(ConfigError, match=r"task\.fresh=maybe: expected true or false"):
        evaluated(make_run(tmp_path, texts=TEXTS), {"name": name, "fresh": "maybe"})
