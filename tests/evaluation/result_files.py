"""Content of result files by hand."""

from zoo.evaluation.results.models import Record
from zoo.evaluation.results.records import make_results

RUN = {
    "id": "seed-0",
    "time": "2026-01-02T03:04:05+00:00",
    "git": None,
    "cmd": "eval.py",
    "host": "here",
    "torch": "2.11",
    "cuda": None,
    "device": "cpu",
    "dtype": "float32",
    "seed": 0,
}
MODEL = {
    "name": "toy",
    "config_sha": "c0",
    "ckpt_sha": "c1",
    "checkpoint": "last",
    "step": 7,
    "params": 1000,
    "params_non_emb": 900,
    "layers": ["lightning"],
    "train_tokens": 800,
    "train_len": 64,
    "adapted": False,
    "recall": None,
    "state_bytes@L": {},
    "kv_bytes@L": {},
}
TOKENIZER = {"name": "bytes", "sha": "beef", "vocab": 257, "bytes_per_token": 2.5}


def record(*values):
    """A record of values in the order of a file; the seconds and the memory are not known."""
    return Record(**dict(zip(Record.model_fields, values)))


def content(records, protocol, **model):
    """What a result file holds, as plain values."""
    sections = {"run": dict(RUN), "model": MODEL | model, "tokenizer": dict(TOKENIZER), "protocol": protocol}
    results = [one.model_dump(mode="json") for one in records]
    return {"schema": "zoo-eval/1", **sections, "results": results, "warnings": []}


def results(records, protocol, **model):
    """The same, checked."""
    return make_results(content(records, protocol, **model))
