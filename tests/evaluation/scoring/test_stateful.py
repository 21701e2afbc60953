import numpy as np
import pytest
import torch

from tests.evaluation.scoring.test_perplexity import BOS, SCHEDULES, some_documents
from tests.evaluation.tiny_run import make_run, small_decoder
from tests.tiers import in_ci
from zoo.config import ConfigError
from zoo.evaluation.evaluate import file_stem
from zoo.evaluation.scoring import stateful
from zoo.evaluation.scoring.documents import score_documents
from zoo.evaluation.scoring.stateful import score_stateful
from zoo.evaluation.tasks.perplexity import PerplexityTask
from zoo.runs.loaded_run import open_run

LENGTHS = [1, 3, 16, 17, 40, 33, 60, 32]


def nats_of(found, documents):
    """Nats by document; fails if a token was scored twice or not at all."""
    nats = {piece.document: values for piece, values in found}
    assert [len(nats[index]) for index in range(len(documents))] == list(map(len, documents))
    return nats


@pytest.mark.parametrize("layers", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("length", [16, *in_ci(1, 100)])
def test_it_equals_one_window_over_the_whole_document(layers, length):
    decoder = small_decoder(layers)
    documents, _ = some_documents(LENGTHS)
    expected = dict(score_documents(decoder, documents, BOS, max(LENGTHS)))
    for batch_tokens in (10_000,) if length == 1 else (1, 60, 10_000):  # token by token takes long
        nats = nats_of(score_stateful(decoder, documents, BOS, length, batch_tokens), documents)
        for index in nats:
            np.testing.assert_allclose(nats[index], expected[index], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("score", [score_stateful, score_documents])
def test_scores_that_are_being_read_leave_the_mode_and_gradients_as_they_were(score):
    decoder = small_decoder().train()
    documents, _ = some_documents(LENGTHS)
    found = score(decoder, documents, BOS, 16, batch_tokens=16)
    for _ in range(3):
        next(found)
        assert torch.is_grad_enabled() and all(module.training for module in decoder.modules())


def test_the_window_does_not_see_what_the_state_remembers():
    """Only the first token differs, and the last window is far from it."""
    documents, _ = some_documents([60])
    changed = [np.concatenate([documents[0][:1] + 1, documents[0][1:]]) % 256]
    decoder = small_decoder()
    a, b = (nats_of(score_stateful(decoder, d, BOS, 16), d)[0] for d in (documents, changed))
    assert abs(a[-1] - b[-1]) > 1e-6
    c, d = (list(score_documents(decoder, texts, BOS, 16)) for texts in (documents, changed))
    assert [np.array_equal(x, y) for (_, x), (_, y) in zip(c, d)] == [False, True, True, True]


def test_progress_and_limits():
    documents, _ = some_documents([*LENGTHS, 0])
    told = []
    found = list(score_stateful(small_decoder(), documents, BOS, 16, 64, told.append))
    assert sum(told) == sum(LENGTHS)
    assert sorted(piece.document for piece, _ in found) == list(range(len(LENGTHS)))
    for length, batch_tokens in ((0, 8), (8, 0)):
        with pytest.raises(ValueError, match="expected a number >= 1"):
            list(score_stateful(small_decoder(), documents, BOS, length, batch_tokens))


def test_a_batch_holds_no_more_cache_than_allowed(monkeypatch):
    decoder, batches = small_decoder(["softmax"]), []
    new_cache = decoder.new_cache
    monkeypatch.setattr(decoder, "new_cache", lambda rows, capacity: batches.append(rows) or new_cache(rows, capacity))
    documents, _ = some_documents([40] * 6)
    list(score_stateful(decoder, documents, BOS, 8))
    monkeypatch.setattr(stateful, "CACHE_BYTES", 4 * decoder.cost(40, decoder.head.weight.dtype).cache_bytes)
    list(score_stateful(decoder, documents, BOS, 8))
    monkeypatch.setattr(stateful, "CACHE_BYTES", 1)
    list(score_stateful(decoder, documents, BOS, 8))
    assert batches == [6, 4, 2, *[1] * 6]


def value(outcome, metric="bits_per_byte", variant=None):
    found = [r for r in outcome.records if r.metric == metric and variant in (None, r.variant)]
    return found[0].value


def test_modes_of_the_task(run_folder):
    run = open_run(run_folder)
    tasks = [PerplexityTask(mode=mode) for mode in ("window", "sliding", "stateful")]
    window, sliding, whole = (task.evaluate(run.subject, 0) for task in tasks)
    assert [o.records[0].variant for o in (window, sliding, whole)] == ["window", "sliding", "stateful"]
    assert [o.protocol["stateful"] for o in (window, sliding, whole)] == [False, False, True]
    assert [file_stem(t, o, run.subject) for t, o in zip(tasks, (window, sliding, whole))] == [
        f"perplexity-text-test{suffix}" for suffix in ("", "-stride8", "-stateful")
    ]
    assert value(window) == value(PerplexityTask().evaluate(run.subject, 0))
    assert value(sliding) == value(PerplexityTask(stride=8).evaluate(run.subject, 0))
    assert len({round(value(o), 6) for o in (window, sliding, whole)}) == 3
    long = PerplexityTask(length=200).evaluate(run.subject, 0)
    for metric in ("perplexity", "word_perplexity", "bits_per_byte"):
        assert value(whole, metric) == pytest.approx(value(long, metric), rel=1e-5)
    assert whole.records[0].length == 104
    assert "window" not in whole.protocol
    assert value(PerplexityTask(mode="stateful", length=5).evaluate(run.subject, 0)) == pytest.approx(
        value(whole), rel=1e-5
    )


def test_stateful_says_what_it_costs(tmp_path):
    for layers, sentence in ((["softmax"], "cache that grows with the document"), (["lightning"], "no layer keeps")):
        folder = tmp_path / layers[0]
        folder.mkdir()
        outcome = PerplexityTask(mode="stateful").evaluate(open_run(make_run(folder, small_decoder(layers))).subject, 0)
        assert any(sentence in warning and "104 tokens" in warning for warning in outcome.warnings)


def test_sliding_by_whole_windows_is_the_window(run_folder):
    first, second = (PerplexityTask(mode=mode, stride=16, length=16) for mode in (None, "sliding"))
    subject = open_run(run_folder).subject
    outcomes = [task.evaluate(subject, 0) for task in (first, second)]
    assert first.name_parts(subject) == second.name_parts(subject) and value(outcomes[0]) == value(outcomes[1])
    assert outcomes[1].records[0].variant == "window"


def test_recalled_and_other_tokens_make_up_the_whole(run_folder):
    outcome = PerplexityTask().evaluate(open_run(run_folder).subject, 0)
    for sample in outcome.samples:
        assert 0 <= sample["recall_tokens"] < sample["tokens"]
        assert 0 <= sample["recall_nats"] < sample["nats"]
    nats, tokens, sizes = (
        np.array([[s[f"recall_{c}"], s[c] - s[f"recall_{c}"]] for s in outcome.samples]).sum(axis=0)
        for c in ("nats", "tokens", "bytes")
    )
    for column, variant in enumerate(("recall", "other")):
        assert value(outcome, "perplexity", variant) == pytest.approx(np.exp(nats / tokens)[column])
        assert value(outcome, "bits_per_byte", variant) == pytest.approx((nats / sizes / np.log(2))[column])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "rolling"}, r"task\.mode=rolling: expected one of window, sliding, stateful"),
        ({"mode": "window", "stride": 8}, r"task\.stride=8 belongs to task\.mode=sliding"),
        ({"mode": "stateful", "stride": 8}, r"task\.stride=8 belongs to task\.mode=sliding"),
    ],
)
def test_modes_that_contradict_the_stride(run_folder, options, message):
    with pytest.raises(ConfigError, match=message):
        PerplexityTask(**options).evaluate(open_run(run_folder).subject, 0)
