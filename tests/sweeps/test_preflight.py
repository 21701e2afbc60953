"""What is refused before the first arm of a sweep trains, and what of a preset gives way."""

import builtins
from functools import cache

import pytest

from tests.tiers import in_ci
from tests.training.conftest import write_text
from zoo.config import ConfigError
from zoo.options.composing import compose_config
from zoo.sweeps import compose as plan
from zoo.sweeps import driver as sweep
from zoo.sweeps import evaluations
from zoo.sweeps.compose import read_plan
from zoo.sweeps.ledger import config_key
from zoo.sweeps.preflight import prepare

TINY = ("-m", "sweep=mixers", "attention=softmax,window", "seed=0", "experiment=tiny", "sweep.tasks=[]")


@pytest.fixture(autouse=True)
def composing_once(monkeypatch):
    """The same configurations for all tests: each takes a good part of a second."""
    for module in (plan, evaluations):
        monkeypatch.setattr(module, "compose_config", lambda program, given=(): composed(program, tuple(given)))


@cache
def composed(program, given):
    return compose_config(program, given)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Arguments for a few kilobytes of text and its cache."""
    folder = tmp_path_factory.mktemp("preflight")
    return [f"data.path={write_text(folder / 'text')}", f"data.cache_dir={folder / 'cache'}"]


def arguments(text, *more, data="text", tasks="perplexity"):
    """Of a small sweep of two attentions."""
    first = ["-m", "sweep=mixers", "attention=softmax,window", "seed=0", "experiment=tiny", f"data={data}"]
    return [*first, "trainer.accelerator=cpu", f"sweep.tasks=[{tasks}]", *text, *more]


def prepared(text, *more, **options):
    return prepare(read_plan(arguments(text, *more, **options)))


@pytest.mark.slow
def test_a_sweep_that_can_be_done_stays_as_it_is(text, capsys):
    given = read_plan(arguments(text, tasks="perplexity,mqar"))
    assert prepare(given) is given
    assert "looking at 2 arms and their 2 evaluations" in capsys.readouterr().out


@pytest.mark.slow
def test_recall_tasks_of_a_preset_that_do_not_fit_are_left_out_with_a_line(capsys):
    """``experiment=tiny -m sweep=mixers`` has sequences of 128 bytes, for which most tasks of the mix are too long."""
    given = read_plan(TINY)
    for run, before in zip(prepare(given).runs, given.runs):
        tasks = run.config.data.recall.tasks
        assert tasks.kv.weight == 0 and tasks.babi.weight == 0 and tasks.passkey.weight == 1
        assert (tasks.niah.variants, tasks.niah.weight) == (["single"], 2)
        assert tasks.mqar == before.config.data.recall.tasks.mqar and before.config.data.recall.tasks.kv.weight == 1
        assert "data.recall.tasks.niah.variants=[single]" in run.overrides
        assert run.key == config_key(run.config) != before.key
    out = capsys.readouterr().out
    assert "not trained on, for they do not fit data.length of every arm: kv default, kv words, niah multikey" in out


def test_what_was_left_out_is_what_the_written_overrides_say():
    run = prepare(read_plan(TINY)).runs[0]
    assert compose_config("train", run.overrides).data == run.config.data


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.recall.tasks.kv.weight=2"], r"arm softmax and 1 more: default of data.recall.tasks.kv does not fit"),
        *in_ci(
            (
                ["data.length=16"],
                r"arm softmax and 1 more: none of data.recall.tasks fits: pairs4 .*longer data",
            ),
            (["data.recall.share=2"], r"arm softmax: data.recall.share=2: expected a number from 0 to 1"),
        ),
    ],
)
def test_recall_tasks_that_are_asked_for_are_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        prepare(read_plan([*TINY, *more]))


@pytest.mark.parametrize(
    ("more", "tasks", "message"),
    [
        (["data.source.split_fractions=[0.5,0.5,0]"], "perplexity", r"arm softmax and 1 more, task perplexity: .*test"),
        (["task.lengths=[9]"], "mqar", r"task mqar task.lengths=\[9\]: mqar.*task.lengths"),
        *in_ci(
            (["task.variants=[odd]"], "mqar", r"task mqar task.variants=\[odd\]: .*pairs4"),
            (["task.samples=many"], "mqar", r"task mqar task.samples=many: task.samples="),
            (["task.length=100000"], "perplexity_position", r"task perplexity_position .*100,?000.*task.length"),
            (
                ["task.haystack=/no/such"],
                "niah",
                r"task niah task.haystack='/no/such': task.haystack=/no/such: no such file",
            ),
            (["task.split=odd"], "perplexity", r"task perplexity task.split=odd: "),
            (["task.names=[piqa]", "task.limit=0.0"], "lm_eval", r"task.limit=0.0"),
            (["tokenizer.kind=runes"], "perplexity", r"arm softmax: .*runes"),
            (["mixers.window.window=0"], "perplexity", r"arm window: .*window=0"),
            (["model.heads=3"], "perplexity", r"arm softmax: .*heads=3"),
            (["trainer.max_steps=0"], "perplexity", r"arm softmax: .*max_steps=0"),
        ),
    ],
)
def test_what_cannot_be_evaluated_or_trained_is_refused_before_anything_is_made(
    text, tmp_path, more, tasks, message, monkeypatch
):
    monkeypatch.setattr(sweep, "Driver", None)
    folder = tmp_path / "sweep"
    with pytest.raises(ConfigError, match=message):
        sweep.run_sweep(arguments(text, *more, f"hydra.sweep.dir={folder}", tasks=tasks))
    assert not folder.exists()


@pytest.mark.slow
def test_an_option_that_a_refusal_names_is_taken(text):
    split = "data.source.split_fractions=[0.5,0.5,0]"
    with pytest.raises(ConfigError, match=r"It has train, validation: choose with task.split="):
        prepared(text, split)
    made = prepared(text, split, "task.split=validation")
    assert [task.label for task in made.tasks] == ["perplexity task.split=validation"]


def test_an_extra_that_is_missing_is_refused(text, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **options):
        if name.startswith("zoo.evaluation.lm_eval.model"):
            raise ModuleNotFoundError("lm_eval is not installed: pip install -e .[lm-eval]")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"task lm_eval task.names=\[piqa\]: lm_eval is not installed"):
        prepared(text, "task.names=[piqa]", tasks="lm_eval")


def test_the_suite_of_eval_py_is_refused_only_if_nothing_of_it_can_be_asked(text):
    small = [f"task.members.{name}=null" for name in ("passkey", "kv", "niah", "vt", "cwe", "fwe", "babi")]
    small += ["task.samples=1", "task.members.perplexity_context=null"]
    prepared(text, *small, "task.lengths=[9]", tasks="offline")  # perplexity can be
    small += ["task.members.perplexity=null", "task.members.perplexity_position=null"]
    with pytest.raises(ConfigError, match=r"task offline .*every task of it would be left out: mqar: "):
        prepared(text, *small, "task.lengths=[9]", tasks="offline")


@pytest.mark.slow
def test_options_of_evaluations_can_be_set_for_all_tasks_or_for_one(text):
    given = arguments(
        text, "task.samples=4", "task.members.niah.lengths=[256]", "+task.options.keys=3", tasks="perplexity,mqar,niah"
    )
    labels = [task.label for task in read_plan(given).tasks]
    assert labels == [
        "perplexity",
        "mqar task.samples=4 +task.options.keys=3",
        "niah task.samples=4 task.lengths=[256] +task.options.keys=3",
    ]
    last = read_plan(["-m", "sweep=recall", "seed=0", "attention=softmax", "task.variants=[pairs8]"]).tasks
    assert [task.label for task in last if task.name == "mqar"] == ["mqar task.variants=[pairs8]"]
    suite = read_plan(arguments(text, "task.members.mqar.samples=4", "task.fresh=true", tasks="offline,mqar"))
    assert [task.label for task in suite.tasks] == [
        "offline task.members.mqar.samples=4 task.fresh=true",
        "mqar task.samples=4 task.fresh=true",
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "task.sample=4",
            r"task.sample=4: no task of this sweep has it. Options are, of perplexity: name, split.*; mqar",
        ),
        ("task.members.niah.samples=4", r"task.members.niah.samples=4: no task of this sweep has it"),
        ("task.members.mqar.sample=4", r"^task=mqar: task.sample: unknown option; did you mean task.samples\?$"),
        ("task.samples=4,5", r"task.samples=4,5: expected one value; several are a list"),
        ("task=niah", r"task=niah does not go with sweep=: sweep.tasks=\[perplexity,mqar\]"),
    ],
)
def test_options_that_no_task_has_are_refused_with_the_list(text, more, message):
    with pytest.raises(ConfigError, match=message):
        read_plan(arguments(text, more, tasks="perplexity,mqar"))
