"""Training on recall samples: what is measured, what a checkpoint tells, and that a stop changes nothing."""

import itertools
import shutil
import signal

import pytest
import torch

import zoo
from tests.tiers import in_ci
from zoo.config import ConfigError
from zoo.data.datamodule import LanguageData
from zoo.data.recall.samples import RecallError
from zoo.files import read_metrics
from zoo.model.checkpoint import find_checkpoint, read_checkpoint
from zoo.options.continued import resumed_config
from zoo.options.train import read_config
from zoo.training.callbacks import Interrupted, NonFiniteLoss
from zoo.training.module import LanguageModule
from zoo.training.monitoring.meter import AnswerMeter, Meter, metrics_of
from zoo.training.monitoring.monitor import describe
from zoo.training.run import train
from zoo.training.training_data import build_data

STATES = ("data/recall=state_tracking", "data.recall.share=0.5", "data.recall.val_samples=12")
MIXED = ("data/recall=mqar", "data.recall.share=0.5", "data.recall.tasks.mqar.variants=[pairs4]")
KEYS = ("train/loss", "train/bits_per_byte", "train/recall_nll", "train/grad_norm", "val/loss", "val/recall_nll")


def prepared(config):
    """The data that training with this configuration has."""
    options = read_config(config)
    data = build_data(options.data, options.tokenizer, options.trainer, options.seed)
    data.prepare()
    return data


def of_answers(losses, wrong, answers):
    """Nats, and whether all is right, of each answer of each row, one target at a time."""
    found = {}
    for row, column in itertools.product(*map(range, answers.shape)):
        if number := int(answers[row, column]):
            nats, right = found.get((row, number), (0.0, True))
            found[row, number] = nats + float(losses[row, column]), right and not wrong[row, column]
    return found


def draw_answers(rows=6, length=40):
    """Answers of one to four tokens, some with none between them."""
    answers = torch.zeros(rows, length, dtype=torch.int64)
    for row in range(rows - 1):  # the last has none
        column = number = 0
        while column < length - 4:
            column += int(torch.randint(0, 3, ()))
            number, size = number + 1, int(torch.randint(1, 5, ()))
            answers[row, column : column + size] = number
            column += size
    return torch.rand(rows, length), torch.rand(rows, length) < 0.3, answers


def test_meters_count_answers_as_one_by_one():
    losses, wrong, answers = draw_answers()
    expected = of_answers(losses, wrong, answers)
    meter, answered = Meter(torch.ones(5, dtype=torch.int64)), AnswerMeter(["a", "b"], torch.device("cpu"))
    tasks = torch.tensor([0, 1, 0, 1, 0, 0])
    mask = torch.zeros_like(wrong)
    mask[:2] = True
    for _ in range(2):
        meter.add(losses, torch.zeros_like(answers), mask, answers)
        answered.add(losses, wrong, answers, tasks)
    nll = sum(nats for nats, _ in expected.values()) / len(expected)
    found = metrics_of(meter.take())
    assert found["recall_nll"] == pytest.approx(nll)
    assert found["loss"] == pytest.approx(float(losses[:2].mean()))  # of the masked text alone
    found = answered.metrics(answered.take())
    right = {task: [ok for (row, _), (_, ok) in expected.items() if tasks[row] == task] for task in (0, 1)}
    assert found["recall_nll"] == pytest.approx(nll)
    assert found["recall_accuracy"] == pytest.approx(sum(sum(r) for r in right.values()) / len(expected))
    assert 0 < found["recall_accuracy"] < 1
    assert found["recall_accuracy/a"] == pytest.approx(sum(right[0]) / len(right[0]))
    assert found["recall_accuracy/b"] == pytest.approx(sum(right[1]) / len(right[1]))
    assert answered.metrics(answered.take()) == {}


def test_what_is_not_there_is_not_reported():
    meter = Meter(torch.ones(5, dtype=torch.int64))
    losses, _, answers = draw_answers()
    meter.add(losses, torch.zeros_like(answers), torch.zeros_like(answers, dtype=torch.bool), answers)
    assert list(metrics_of(meter.take())) == ["recall_nll"]
    meter.add(losses, torch.zeros_like(answers))
    meter.restore([1.0, 1.0, 1.0, 1.0])  # of a checkpoint from before there were answers
    assert list(metrics_of(meter.take())) == ["loss", "perplexity", "bits_per_byte"]
    shown = describe({"train/recall_nll": 1.234, "train/tokens_per_second": 5000.0, "val/recall_accuracy": 0.5})
    assert shown == "recall 1.23 nats  5,000 tokens/s  recall 50.0%"


@pytest.mark.parametrize("mixed", [MIXED, STATES])
def test_the_loss_of_text_is_that_of_the_text_alone(small, tmp_path, mixed):
    """The first step's record against the batch of that step, scored by a model that has not been trained."""
    config = small(*mixed, "optimizer.lr=1e-30", "optimizer.embedding_lr=1e-30", "trainer.max_steps=1")
    train(config, tmp_path / "run")
    (row,) = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    data = prepared(config)
    batch = next(iter(data.train_dataloader()))
    decoder = zoo.load(tmp_path / "run").eval()
    with torch.no_grad():
        scores = decoder(batch["tokens"][:, :-1]).log_softmax(-1)
    targets = torch.where(batch["answers"] > 0, batch["targets"], batch["tokens"][:, 1:])
    assert torch.equal(targets, batch["tokens"][:, 1:]) == (mixed == MIXED)
    losses = -scores.gather(2, targets[..., None])[..., 0]
    assert row["train/loss"] == pytest.approx(float(losses[batch["mask"]].mean()), rel=1e-5)
    found = of_answers(losses, torch.zeros_like(losses, dtype=torch.bool), batch["answers"])
    assert row["train/recall_nll"] == pytest.approx(sum(n for n, _ in found.values()) / len(found), rel=1e-5)


@pytest.mark.slow
def test_validation_is_greedy_decoding_of_samples_kept_apart(small, tmp_path):
    config = small(*MIXED, "data.recall.val_samples=120", "trainer.max_steps=10")
    train(config, tmp_path / "run")
    row = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val/loss" in row][-1]
    decoder = zoo.load(tmp_path / "run").eval()
    data = prepared(config)
    right, nats = [], []
    for number in range(120):
        sample, _ = data.recall_rows.validation(number)
        tokens, places = sample["tokens"].tolist(), (1 + sample["answers"].nonzero()[0]).tolist()  # one token each
        found = decoder.generate([tokens[:place] for place in places], 1, temperature=0)
        with torch.no_grad():
            scores = decoder(torch.tensor([tokens])).log_softmax(-1)[0]
        nats += [-float(scores[place - 1, tokens[place]]) for place in places]
        right += [answer[-1] == tokens[place] for answer, place in zip(found, places)]
    assert len(right) == 4 * 120
    assert row["val/recall_accuracy"] == pytest.approx(sum(right) / len(right)) and any(right)
    assert row["val/recall_nll"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert row["val/bits_per_byte"] > 0


def test_validation_of_states_compares_with_the_states(small, tmp_path):
    """Each state told from the symbols before it, of a model that has learned a little, and of each group its share."""
    config = small(*STATES, "data.recall.val_samples=24", "trainer.max_steps=10")
    train(config, tmp_path / "run")
    row = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val/loss" in row][-1]
    decoder = zoo.load(tmp_path / "run").eval()
    data = prepared(config)
    right, nats = {name: [] for name in data.recall_names}, []
    for number in range(24):
        sample, name = data.recall_rows.validation(number)
        places = sample["answers"].nonzero()[0]
        with torch.no_grad():
            scores = decoder(torch.tensor(sample["tokens"][None, :-1])).log_softmax(-1)[0, places]
        states = torch.tensor(sample["targets"][places])
        nats += (-scores.gather(1, states[:, None])[:, 0]).tolist()
        right[data.recall_names[name]] += (scores.argmax(-1) == states).tolist()
    assert list(right) == ["parity", "mod5", "s3_swap", "s3", "s5_swap", "s5"] and len(nats) == 24 * 30
    assert row["val/recall_nll"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert row["val/recall_accuracy"] == pytest.approx(sum(map(sum, right.values())) / len(nats)) and any(
        right["parity"]
    )
    for name, found in right.items():
        assert row[f"val/recall_accuracy/{name}"] == pytest.approx(sum(found) / len(found))


def stop_at(monkeypatch, micro_step):
    inner = LanguageModule.training_step

    def step(self, batch, batch_idx):
        if batch_idx == micro_step:
            signal.raise_signal(signal.SIGTERM)
        return inner(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModule, "training_step", step)


@pytest.mark.parametrize(
    ("overrides", "stop", "workers"),
    [
        *in_ci(
            (MIXED, 7, 2),
            ((*MIXED, "data.isolate_documents=true", "trainer.micro_batch_size=1", "trainer.log_every=4"), 27, 0),
            ((*MIXED, "data.recall.share=1"), 6, 1),
        ),
        (STATES, 7, 2),
    ],
)
def test_stopped_and_resumed_is_never_stopped(small, tmp_path, monkeypatch, overrides, stop, workers):
    overrides = (*overrides, "trainer.max_steps=12")
    train(small(*overrides), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, stop)
        with pytest.raises(Interrupted):
            train(small(*overrides), tmp_path / "parts")
    options = [f"resume={tmp_path / 'parts'}", f"data.num_workers={workers}"]
    train(resumed_config(small(*options), options), tmp_path / "parts")
    whole, parts = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    assert [[row.get(key) for key in KEYS] for row in whole] == [[row.get(key) for key in KEYS] for row in parts]
    assert any(row.get("train/recall_nll") for row in whole) and any(row.get("val/recall_nll") for row in whole)
    a, b = (read_checkpoint(find_checkpoint(tmp_path / name))["state_dict"] for name in ("whole", "parts"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_a_checkpoint_tells_what_was_trained_on(small, tmp_path):
    short = "trainer.max_steps=2"
    train(small(*MIXED, short), tmp_path / "recall")
    train(small(short), tmp_path / "plain")
    train(small(*MIXED, short, "data.recall.share=0"), tmp_path / "watched")
    facts = {n: read_checkpoint(find_checkpoint(tmp_path / n))["zoo"] for n in ("recall", "plain", "watched")}
    assert facts["recall"]["recall"]["share"] == 0.5 and list(facts["recall"]["recall"]["tasks"]) == ["mqar"]
    assert facts["recall"]["tokens"] == facts["plain"]["tokens"] == 2 * 4 * 32
    assert "recall" not in facts["plain"] and "recall" not in facts["watched"]  # validated on, not trained on


@pytest.mark.slow
def test_a_run_that_starts_from_recall_remembers_it(small, tmp_path):
    train(small(*MIXED, "trainer.max_steps=1"), tmp_path / "recall")
    started = [f"++init={tmp_path / 'recall'}"]
    train(small(*started, "trainer.max_steps=1"), tmp_path / "text")
    earlier, later = (read_checkpoint(find_checkpoint(tmp_path / name))["zoo"] for name in ("recall", "text"))
    assert later["recall"] == earlier["recall"]
    shutil.rmtree(tmp_path / "recall")
    options = [f"resume={tmp_path / 'text'}", "trainer.max_steps=2"]
    train(resumed_config(small(*options), options), tmp_path / "text")
    content = read_checkpoint(find_checkpoint(tmp_path / "text"))
    assert content["global_step"] == 2 and content["zoo"]["recall"] == earlier["recall"]


@pytest.mark.slow
def test_a_run_on_recall_alone_has_no_loss_of_text(small, tmp_path, capsys):
    last = train(small(*MIXED, "data.recall.share=1", "trainer.max_steps=30"), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    nats = [row["train/recall_nll"] for row in rows if "train/recall_nll" in row]
    assert sum(nats[-5:]) < sum(nats[:5])
    assert not any("loss" in key or "bits_per_byte" in key for row in rows for key in row)
    assert "val/recall_accuracy" in last
    assert "100% of the sequences: mqar" in capsys.readouterr().out


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_non_finite_loss_stops_the_run(small, tmp_path, share):
    wild = ("optimizer.lr=1e30", "optimizer.warmup_steps=1", f"data.recall.share={share}")
    with pytest.raises(NonFiniteLoss, match=r"the loss is nan at step"):
        train(small(*MIXED, *wild), tmp_path / "run")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.recall.share=2", r"data\.recall\.share=2: expected a number from 0 to 1"),
        (
            "data.recall.tasks.mqar.variants=[pairs64]",
            r"pairs64 of data\.recall\.tasks\.mqar does not fit data\.length=32",
        ),
        (
            "+data.recall.tasks.passkye={}",
            r"recall\.tasks\.passkye: unknown task 'passkye'; did you mean passkey\?$",
        ),
    ],
)
def test_bad_input_is_a_clear_error_before_training(small, tmp_path, override, message):
    with pytest.raises((RecallError, ConfigError), match=message):
        train(small(*MIXED, override), tmp_path / "run")
    assert not list(tmp_path.glob("run/checkpoints/*.ckpt"))


def test_any_data_set_takes_recall_samples(small):
    mixed = small("data/recall=mix", "data.recall.share=0.3", "data.recall.tasks.vt.weight=0")
    assert mixed.data.name == "text" and mixed.data.recall.share == 0.3
    assert small().data.recall is None
    assert LanguageData.__init__.__kwdefaults__["recall"] is None
