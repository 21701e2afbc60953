import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.evaluation.tiny_run import make_run
from zoo.config import ConfigError
from zoo.data import DataError
from zoo.evaluation.evaluate import file_stem
from zoo.evaluation.tasks.perplexity import PerplexityTask
from zoo.evaluation.tasks.perplexity_position import PerplexityPositionTask, position_edges
from zoo.runs.loaded_run import open_run

RANDOM = np.random.default_rng(0)
LENGTHS = [40, 31, 32, 33, 100, 5]
TEXTS = {
    "train": ["one two three\n" * 20],
    "test": ["".join(RANDOM.choice(list("abc é"), size)).strip().ljust(size, "x") for size in LENGTHS],
}


@pytest.fixture
def run(tmp_path):
    return open_run(make_run(tmp_path, texts=TEXTS))


@pytest.mark.parametrize("bucket", [1, 3, 16, 64, 5000])
def test_buckets_partition_the_positions(bucket):
    for length in (1, 2, 15, 16, 17, 64, 65, 1000, 4096):
        edges = position_edges(length, bucket)
        assert (edges[0], edges[-1]) == (0, length)
        held = [position for start, stop in pairwise(edges) for position in range(start, stop)]
        assert held == list(range(length))
        assert all(start == 0 or stop <= 2 * start for start, stop in pairwise(edges))
        assert edges[1] == min(bucket, length)
    assert position_edges(1024) == [0, 64, 128, 256, 512, 1024]


def documents_of(run, length):
    texts = [text.encode() for text in TEXTS["test"]]
    return [list(text[:length]) for text in texts if len(text) >= length]


def naive_nats(run, documents):
    """``(documents, length)``: nats by position, one document at a time."""
    rows = []
    for document in documents:
        ids = torch.tensor([[run.document_token, *document]])
        with torch.no_grad():
            logits = run.decoder(ids[:, :-1])[0].double()
        rows.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none").numpy())
    return np.array(rows)


def values(outcome, metric):
    return {record.variant: record.value for record in outcome.records if record.metric == metric}


@pytest.mark.parametrize("batch_tokens", [1, 70, 10_000])
def test_buckets_hold_the_loss_of_their_positions(run, batch_tokens):
    outcome = PerplexityPositionTask(length=32, bucket=4, batch_tokens=batch_tokens).evaluate(run.subject, 0)
    documents = documents_of(run, 32)
    nats = naive_nats(run, documents)
    assert len(documents) == outcome.protocol["documents"] >= 4
    assert outcome.protocol["positions"] == [0, 4, 8, 16, 32]
    repeats = np.array([[i > 0 and (d[i - 1], d[i]) in pairwise(d[:i]) for i in range(len(d))] for d in documents])
    for start, stop in ((0, 4), (4, 8), (8, 16), (16, 32)):
        here, hit = nats[:, start:stop], repeats[:, start:stop]
        found, bits = values(outcome, "perplexity"), values(outcome, "bits_per_byte")
        assert found[f"{start}-{stop}"] == pytest.approx(math.exp(here.mean()), rel=1e-5)
        assert bits[f"{start}-{stop}"] == pytest.approx(here.mean() / math.log(2), rel=1e-5)
        assert found[f"{start}-{stop}-other"] == pytest.approx(math.exp(here[~hit].mean()), rel=1e-5)
        if hit.any():
            assert found[f"{start}-{stop}-recall"] == pytest.approx(math.exp(here[hit].mean()), rel=1e-5)
    assert repeats.any()
    assert outcome.protocol["tokens"] == nats.size


def test_all_buckets_together_are_the_window_perplexity_of_the_cut_documents(run, tmp_path):
    lines = [json.dumps({"text": "".join(RANDOM.choice(list("abcd"), 33))}) for _ in range(3)]
    file = tmp_path / "cut.jsonl"
    file.write_text("".join(line + "\n" for line in lines))
    whole = PerplexityTask(path=str(file), length=33).evaluate(run.subject, 0)
    parts = PerplexityPositionTask(path=str(file), length=33, bucket=2).evaluate(run.subject, 0)
    assert [sum(s["nats"]) for s in parts.samples] == pytest.approx([s["nats"] for s in whole.samples])
    assert [s["id"] for s in parts.samples] == [s["id"] for s in whole.samples]


def test_protocol_name_and_warnings(run):
    task = PerplexityPositionTask(max_documents=2)
    outcome = task.evaluate(run.subject, 0)
    assert file_stem(task, outcome, run.subject) == "perplexity_position-text-test-max_documents2"
    assert {record.length for record in outcome.records} == {16}
    assert {record.n for record in outcome.records if record.variant == "0-16"} == {2}
    assert "Intervals over 2 documents are rough." in outcome.warnings
    task = PerplexityPositionTask(length=32, bucket=8)
    longer = task.evaluate(run.subject, 0)
    assert file_stem(task, longer, run.subject) == "perplexity_position-text-test-length32-bucket8"
    assert any("Windows of 32 tokens are longer than those of training" in warning for warning in longer.warnings)


def test_too_short_documents_and_wrong_options(run):
    longest = max(len(text.encode()) for text in TEXTS["test"])
    message = rf"no document of text \(test\) has 500 tokens, the longest has {longest}: choose a smaller task\.length"
    with pytest.raises(DataError, match=message):
        PerplexityPositionTask(length=500).evaluate(run.subject, 0)
    for name in ("length", "bucket", "batch_tokens", "max_documents"):
        with pytest.raises(ConfigError, match=rf"task\.{name}=0"):
            PerplexityPositionTask(**{name: 0}).evaluate(run.subject, 0)
