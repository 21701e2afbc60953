"""The model of lm-evaluation-harness against one forward pass per request, without batches and without padding."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.evaluation.tiny_run import make_run, small_decoder
from zoo.data import build_tokenizer
from zoo.evaluation.scoring.documents import cut_documents
from zoo.evaluation.scoring.perplexity_sums import evaluate_perplexity
from zoo.runs.loaded_run import open_run

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

from lm_eval.api.model import CachingLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from zoo.evaluation.lm_eval.model import ZooLM

EOT, LENGTH = 256, 32
PAIRS = [
    ("", "abc"),
    ("one two", " three"),
    ("x", "y"),
    ("Größe: 水", " 🎉 und mehr"),
    ("one two", " four"),
    ("a" * 20, "b"),
    ("", "<|endoftext|>"),
]
TEXTS = ["x", "abc def " * 9, "Größe: 水", "a" * LENGTH, "b" * (LENGTH + 1), "c" * (2 * LENGTH + 5)]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    opened = open_run(make_run(tmp_path_factory.mktemp("run")))
    return replace(opened, decoder=opened.decoder.double())


@pytest.fixture
def model(run):
    return ZooLM(run.subject, max_length=LENGTH)


def ask(*arguments):
    return [SimpleNamespace(args=args) for args in arguments]


def naive(decoder, context, continuation, length=LENGTH):
    """Log-likelihood of token ids after token ids, and whether each is the most likely one."""
    inputs = (context + continuation)[-(length + 1) : -1]
    with torch.no_grad():
        predicted = decoder(torch.tensor([inputs]))[0, -len(continuation) :].log_softmax(-1)
    targets = torch.tensor(continuation)
    return predicted.gather(1, targets[:, None]).sum().item(), bool((predicted.argmax(-1) == targets).all())


def ids(text):
    return list(text.encode())


def test_likelihoods_equal_one_pass_per_request(run, model):
    found = model.loglikelihood(ask(*PAIRS))
    expected = [naive(run.decoder, [EOT, *ids(context)], ids(rest)) for context, rest in PAIRS]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert model.warnings() == []


@pytest.mark.parametrize("batch_tokens", [1, 40])
def test_results_do_not_depend_on_the_batch(run, model, batch_tokens):
    other = ZooLM(run.subject, max_length=LENGTH, batch_tokens=batch_tokens)
    for name, requests in (("loglikelihood", ask(*PAIRS)), ("loglikelihood_rolling", ask(*((t,) for t in TEXTS)))):
        ours, theirs = np.array(getattr(model, name)(requests)), np.array(getattr(other, name)(requests))
        assert np.allclose(ours, theirs, rtol=0, atol=1e-5), name
    writing = ask(*((context, {"max_gen_toks": 8}) for context, _ in PAIRS))
    assert model.generate_until(writing) == other.generate_until(writing)


def test_greedy_continuations_are_known_as_such(run, model):
    contexts = [[EOT], [EOT, *ids("one two")], [EOT, *ids("水")]]
    greedy = run.decoder.generate(contexts, 5, temperature=0)
    wrong = [[*tokens[:-1], (tokens[-1] + 1) % 256] for tokens in greedy]
    requests = [(("", ""), context, rest) for context, rest in zip(contexts * 2, greedy + wrong)]
    assert [found for _, found in model._loglikelihood_tokens(requests)] == [True] * 3 + [False] * 3


def test_chain_rule_from_the_document_token_on(model):
    whole, head, tail = model.loglikelihood(ask(("", "abcdef"), ("", "abc"), ("abc", "def")))
    assert whole[0] == pytest.approx(head[0] + tail[0], abs=1e-5)
    rolling = model.loglikelihood_rolling(ask(("abcdef",)))[0]
    assert whole[0] == pytest.approx(rolling, abs=1e-4)


def test_contexts_without_the_document_token(run):
    model = ZooLM(run.subject, max_length=LENGTH, document_token=False)
    found = model.loglikelihood(ask(("abc", "d"), ("", "d")))
    assert found[0][0] == pytest.approx(naive(run.decoder, ids("abc"), ids("d"))[0], abs=1e-5)
    assert found[1][0] == pytest.approx(naive(run.decoder, [EOT], ids("d"))[0], abs=1e-5)


def test_spaces_at_the_end_of_a_context_belong_to_the_continuation(model):
    found = model.loglikelihood(ask(("one ", "two"), ("one", " two"), (" ", "x"), ("", " x")))
    assert found[0] == found[1] and found[2] == found[3]


def test_an_empty_continuation_is_certain(model):
    assert model.loglikelihood(ask(("abc", ""), ("", ""))) == [(0.0, True)] * 2


def test_a_token_shared_by_both_parts_is_scored_once(run, tmp_path):
    source = SimpleNamespace(name="s", fingerprint=lambda split: "s", documents=lambda split: [document])
    document = SimpleNamespace(name="d", text="abcd abcd abcd " * 20)
    tokenizer = build_tokenizer({"kind": "bpe", "vocab_size": 261}, source, tmp_path)
    decoder = small_decoder(vocab_size=300).double()
    model = ZooLM(replace(run, tokenizer=tokenizer, decoder=decoder).subject)
    whole = tokenizer.encode("x abcd", add_special_tokens=False)
    assert tokenizer.encode("x ab", add_special_tokens=False) != whole[:2] and len(whole) == 2
    found = model.loglikelihood(ask(("x ab", "cd")))
    expected = naive(decoder, [tokenizer.eos_token_id, whole[0]], whole[1:])
    assert found[0][0] == pytest.approx(expected[0], abs=1e-5)
    assert model.counts["joined"] == 1 and "share a token" in model.warnings()[0]


def test_long_contexts_lose_their_beginning_and_are_counted(run, model):
    exact, longer = "c" * (LENGTH - 1), "d" * 50
    found = model.loglikelihood(ask((exact, "xy"), (longer, "xyz"), ("e", "f")))
    assert found[0][0] == pytest.approx(naive(run.decoder, ids(exact), ids("xy"))[0], abs=1e-5)
    assert found[1][0] == pytest.approx(naive(run.decoder, ids(longer), ids("xyz"))[0], abs=1e-5)
    assert model.counts["contexts"] == 3 and model.counts["contexts_cut"] == 1
    assert model.counts["contexts_tokens_cut"] == 50 - (LENGTH + 1 - 3)
    assert "1 of 3 contexts" in model.warnings()[0]


def windows(tokens, bos, length):
    return [make_disjoint_window(pair) for pair in get_rolling_token_windows(tokens, bos, length, 1)]


def test_continuations_longer_than_the_model_are_cut_into_windows(run, model):
    rest = ids("abcdefg" * 11)
    found = model.loglikelihood(ask(("xy", "abcdefg" * 11)))[0][0]
    expected = sum(naive(run.decoder, *window)[0] for window in windows(rest, ids("y")[0], LENGTH))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 16])
def test_windows_are_those_of_the_harness(length):
    for size in range(40):
        tokens = list(range(size))
        ours = [
            (piece.tokens[: len(piece) - piece.scored + 1].tolist(), piece.targets.tolist())
            for piece in cut_documents([np.array(tokens)], EOT, length, None)
        ]
        assert ours == windows(tokens, EOT, length)


def test_rolling_likelihoods_equal_the_windows_of_the_harness_and_our_perplexity(run, model):
    found = model.loglikelihood_rolling(ask(*((text,) for text in [*TEXTS, ""])))
    cut = [windows(ids(text), EOT, LENGTH) for text in TEXTS]
    expected = [sum(naive(run.decoder, *window)[0] for window in document) for document in cut]
    assert found == pytest.approx([*expected, 0.0], abs=1e-4)
    documents = [np.array(ids(text)) for text in TEXTS]
    scores = evaluate_perplexity(run.decoder, documents, np.ones((len(TEXTS), 2)), EOT, LENGTH)
    assert (-scores.nats).tolist() == pytest.approx(found[:-1], abs=1e-4)
    assert scores.tokens.tolist() == [sum(len(scored) for _, scored in document) for document in cut]


def test_texts_are_those_of_the_decoder_alone(run, model):
    asked = [("one two", ["\n"], 8), ("水", [], 5), ("", "e", 8), ("abc " * 4, [" "], 12)]
    requests = ask(*((context, {"until": until, "max_gen_toks": new}) for context, until, new in asked))
    for (context, until, new), text in zip(asked, model.generate_until(requests)):
        tokens = run.decoder.generate([[EOT, *ids(context)]], new, temperature=0, stop_token=EOT)[0]
        expected = run.tokenizer.decode(tokens)
        for stop in until:
            expected = expected.split(stop)[0]
        assert text == expected
    assert model.warnings() == []


def test_prompts_leave_room_for_the_new_tokens(run, model):
    requests = ask(("abcdefghij" * 4, {"max_gen_toks": 10, "num_beams": 3}), ("abc", {"max_gen_toks": 10}))
    text = model.generate_until(requests)[0]
    prompt = ids("abcdefghij" * 4)[-(LENGTH - 10) :]
    assert text == run.tokenizer.decode(run.decoder.generate([prompt], 10, temperature=0, stop_token=EOT)[0])
    cut, ignored = model.warnings()
    assert "1 of 2 prompts" in cut and "lost 18 tokens" in cut and "num_beams" in ignored
    with pytest.raises(ValueError, match=r"32 new tokens.*task.max_length higher"):
        model.generate_until(ask(("abc", {"max_gen_toks": LENGTH})))


def test_nothing_is_padded_on_the_left(run, model, monkeypatch):
    seen = []
    hidden = run.decoder.hidden
    monkeypatch.setattr(run.decoder, "hidden", lambda ids, *a, **b: seen.append(ids) or hidden(ids, *a, **b))
    model.loglikelihood(ask(*PAIRS))
    model.loglikelihood_rolling(ask(("x",), ("abc",), ("abcdefg",)))
    model.generate_until(ask(("x", {"max_gen_toks": 1}), ("abc", {"max_gen_toks": 1})))
    assert len(seen) == 3 and all(len(batch) > 1 and (batch[:, 0] == EOT).all() for batch in seen)


def test_the_harness_keeps_results_in_its_cache(run, model, tmp_path, monkeypatch):
    requests = ask(*PAIRS)
    found = CachingLM(model, str(tmp_path / "cache.db")).loglikelihood(requests)
    monkeypatch.setattr(run.decoder, "hidden", None)
    again = CachingLM(ZooLM(run.subject, max_length=LENGTH), str(tmp_path / "cache.db")).loglikelihood(requests)
    assert [tuple(pair) for pair in again] == found


def test_what_the_harness_asks_of_a_model(run, model):
    assert model.eot_token_id == model.prefix_token_id == EOT
    assert (model.max_length, ZooLM(run.subject).max_length) == (LENGTH, 16)
    assert (model.max_gen_toks, ZooLM(run.subject, max_length=4096).max_gen_toks) == (LENGTH // 2, 256)
    assert model.tok_encode("a<|endoftext|>") == ids("a<|endoftext|>")
    assert model.tok_decode(model.tok_encode("Größe 水")) == "Größe 水"
    assert (model.rank, model.world_size, str(model.device)) == (0, 1, "cpu")
    with pytest.raises(ValueError, match="no chat template"):
        model.apply_chat_template([])
    with pytest.raises(ValueError, match="max_length=0: expected a number >= 1"):
        ZooLM(run.subject, max_length=0)
