"""From the command line to the runs of a sweep."""

import pytest

from tests.tiers import in_ci
from zoo import mixers
from zoo.config import CONFIGS, ConfigError
from zoo.costs.matching import match_config
from zoo.model import expand_schedule
from zoo.options.composing import compose_config
from zoo.sweeps.arms import Arm, all_mixers, kv_heads, leave_one_out, merge, one_layer, without_replaced
from zoo.sweeps.compose import asks_for_sweep, read_plan
from zoo.sweeps.ledger import config_key

PRESETS = sorted(p.stem for p in (CONFIGS / "sweep").glob("*.yaml") if p.stem not in ("base", "none"))


def plan(*arguments):
    return read_plan(["-m", *arguments])


def layers(run):
    config = run.config
    return expand_schedule(
        config.schedule.pattern, config.model.depth, config.attention, mixers.names(), config.schedule.patch
    )


NEAR = (("near", 32), ("far", 256))


@pytest.mark.parametrize("name", ["mixers", *in_ci(*(name for name in PRESETS if name != "mixers"))])
def test_every_preset_is_a_sweep_with_a_question(name):
    shorter = {"mixers": ["attention=softmax,window,ssd"], "layer_position": ["model.depth=2"]}
    made = plan(f"sweep={name}", *shorter.get(name, []))
    described = made.describe()
    assert made.folder.as_posix() == f"sweeps/{name}" and described["name"] == name and described["question"]
    assert made.seeds == [0, 1, 2] and made.reference in [arm.name for arm in made.arms] and len(made.arms) > 2
    assert [(run.seed, run.arm) for run in made.runs] == [(s, arm.name) for s in made.seeds for arm in made.arms]
    assert len({run.key for run in made.runs}) == len(made.runs)
    for run in (made.runs[0], made.runs[-1]):  # what its train.py composes is what is planned
        assert config_key(compose_config("train", run.overrides)) == run.key
    tasks = {task.name for task in made.tasks}
    assert tasks >= ({"state_tracking"} if name == "state_tracking" else {"perplexity", "mqar", "niah"})
    assert described["match"] == (None if name == "lengths" else "params")
    tokens = {run.config.trainer.batch_size * run.config.data.length for run in made.runs}
    assert len(tokens) == 1, "arms see different numbers of tokens"


@pytest.mark.slow
def test_hybrid_ratio_has_the_shares_it_names():
    made = plan("sweep=hybrid_ratio", "seed=0", "attention=ssd")
    shares = {run.arm: layers(run).count("softmax") for run in made.runs}
    assert shares == {"no_softmax": 0, "7to1": 1, "3to1": 2, "1to1": 4, "softmax": 8}
    assert all(set(layers(run)) <= {"ssd", "softmax"} for run in made.runs)
    reference = made.runs[0].config.match.reference
    assert (made.reference, reference.schedule.pattern, reference.attention) == ("softmax", "softmax", "ssd")


@pytest.mark.slow
def test_recall_has_the_attentions_it_names_and_all_learn_the_same():
    made = plan("sweep=recall")
    first = {run.arm: layers(run)[0] for run in made.runs}
    assert first == {arm: arm.partition("_")[0] for arm in first} and len(first) == 8
    counts = {run.arm: layers(run).count("softmax") for run in made.runs}
    assert [count for arm, count in counts.items() if arm.endswith("3to1")] == [2, 2]
    assert len({str(run.config.data) + str(run.config.optimizer) for run in made.runs}) == 1
    gqa = next(run.config for run in made.runs if run.arm == "gqa")
    assert gqa.mixers.gqa.kv_heads < gqa.model.heads


@pytest.mark.slow
def test_the_command_line_reaches_every_arm_and_wins_over_the_preset():
    made = plan(
        "sweep=hybrid_ratio",
        "schedule.pattern=softmax,2xlightning+softmax",
        *("seed=5,7", "model=125m", "trainer.max_steps=7", "match=flops", "sweep.jobs=3", "hydra.sweep.dir=x y"),
    )
    assert [(run.arm, run.seed) for run in made.runs] == [
        (arm, seed) for seed in (5, 7) for arm in ("softmax", "2xlightning+softmax")
    ]
    for run in made.runs:
        assert (run.config.model.depth, run.config.trainer.max_steps, run.config.seed) == (12, 7, run.seed)
        assert run.config.match.quantity == "flops" and run.config.match.reference.schedule.pattern == "softmax"
        assert run.config.data.name == "recall_mix", "a preset's choice that is not replaced stays"
        assert not run.config.sweep.name
    assert made.options["jobs"] == 3 and str(made.folder) == "x y"
    assert made.command.startswith("python train.py -m sweep=hybrid_ratio ") and "'hydra.sweep.dir=x y'" in made.command
    fewer = plan("sweep=hybrid_ratio", "schedule.pattern=3xlightning+softmax", "seed=0", "match=none")
    assert (fewer.reference, len(fewer.runs), fewer.describe()["match"]) == ("3xlightning+softmax", 1, None)


def test_lengths_keep_the_tokens_of_a_step():
    made = plan("sweep=lengths", "seed=0", "data.length=64,2048")
    sizes = [(run.config.data.length, run.config.trainer.batch_size) for run in made.runs]
    assert sizes == [(64, 32), (2048, 1)]


@pytest.mark.slow
def test_rules():
    base = compose_config("train", ["model.depth=12", "model.heads=6", "schedule.pattern=2xlightning+softmax"])
    assert [arm.overrides for arm in kv_heads(base, "k", None)] == [("k=6",), ("k=3",), ("k=2",), ("k=1",)]
    assert {arm.name for arm in all_mixers(base, "attention", None)} == set(mixers.names())
    left_out = leave_one_out(base, "schedule.patch", None)
    assert [arm.name for arm in left_out] == ["all", "without02", "without05", "without08", "without11"]
    assert left_out[2].overrides == ("schedule.patch='5:attention'",)
    alone = one_layer(base, "schedule.patch", None)
    assert [arm.name for arm in alone][:2] == ["none", "only00"] and len(alone) == 13
    made = plan("sweep=layer_position", "sweep.rule=one_layer", "seed=0", "model.depth=2")
    assert [layers(run).count("softmax") for run in made.runs] == [0, 1, 1]
    with pytest.raises(ConfigError, match="no layer but lightning"):
        leave_one_out(compose_config("train"), "schedule.patch", None)


def test_overrides_of_the_same_name_are_one():
    assert merge(["a=1", "b.c=2"], ["+a=3"], ["b.c=4", "d/e=5"]) == ["+a=3", "b.c=4", "d/e=5"]
    assert without_replaced(["model.depth=8", "data=mqar", "modelx=1"], ["model=125m", "data/recall=mix"]) == [
        "data=mqar",
        "modelx=1",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=0.1,0.2"], r"optimizer.lr=0.1,0.2: this sweep has the axis schedule.pattern"),
        (["model=nope"], r"^model=nope: unknown choice; .*125m"),
        (["model.widht=3"], r"^model.widht: unknown option; did you mean model.width\?$"),
        (["sweep=hybrid"], r"^sweep=hybrid: unknown choice; .*hybrid_ratio"),
        (["sweep.arms=[{name:odd,overrides:['model.widht=3']}]"], r"^arm odd: model.widht: unknown option; did you"),
        (["model.width"], r"^model.width: expected KEY=VALUE"),
        (["sweep.tasks=[nope]"], r"sweep.tasks has 'nope'[\s\S]*perplexity"),
        (["sweep.tasks=[{name:niah,overrides:['task.foo=1']}]"], r"^task=niah: task.foo: unknown option; "),
        (["sweep.rule=odd"], r"sweep.rule=odd: expected one of kv_heads"),
        *in_ci(
            (["sweep.retry=maybe"], r"sweep.retry=maybe: expected true or false"),
            (["sweep.jobs=1.5"], r"sweep.jobs=1.5: expected a whole number from 1"),
            (["sweep.launcher=ssh"], r"sweep.launcher=ssh: expected one of local, slurm"),
            (["sweep.reference=odd"], r"sweep.reference=odd is not an arm.*7to1"),
            (["sweep.jobs=1,2"], r"sweep.jobs=1,2: expected one value"),
            (["seed=0,0"], r"seed=0,0: expected different whole numbers"),
            (["seed=x"], r"seed=x: expected different whole numbers"),
            (["schedule.pattern=softmax,softmax"], r"two arms called softmax"),
            (["sweep.seeds=2.5"], r"sweep.seeds=2.5: expected a list, each a whole number"),
            (["sweep.seeds=null"], r"sweep.seeds=null: expected a list, each a whole number"),
            (["sweep.tasks=perplexity"], r"sweep.tasks=perplexity: expected a list"),
            (["init=x"], r"init=x does not go with sweep="),
            (["model.depth=4"], r"no_softmax and 7to1 are the same layers \(lightning lightning lightning lightning\)"),
            (["attention=softmax"], r"are the same layers"),
            (["resume=x"], r"resume=x does not go with sweep="),
            (["hydra.run.dir=x"], r"hydra.run.dir=x does not go with sweep="),
            (["--config-name=x"], r"--config-name=x does not go with sweep="),
            (["sweep.arms=[{name:../x,overrides:[]}]"], r"'../x': expected letters"),
            (["sweep.arms=[{name:a,overrides:[]},{name:b,overrides:[]}]"], r"a and b are the same configuration"),
            (["sweep.arms=null"], r"has no arms"),
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan("sweep=hybrid_ratio", *arguments)


@pytest.mark.slow
def test_a_value_names_the_arm_that_sets_nothing_else():
    made = plan("sweep=recall", "attention=lightning,softmax,ssd", "seed=0")
    assert {run.arm: set(layers(run)) for run in made.runs} == {
        name: {name} for name in ("lightning", "softmax", "ssd")
    }


@pytest.mark.slow
def test_arms_of_other_sizes_are_matched_with_the_reference_arm():
    """Also where a size comes with a group, and where each arm has an attention of its own making."""
    plain = "{name: small, overrides: ['attention=softmax']}"
    deep = "{name: deep, overrides: ['attention=lightning', 'model.depth=6']}"
    made = plan("sweep=window", f"sweep.arms=[{plain},{deep}]", "seed=0")
    assert len({match_config(run.config, 100)[1].reference_value for run in made.runs}) == 1
    far = "{name: wide, overrides: ['model=125m', 'attention=lightning']}"
    wide = plan("sweep=window", f"sweep.arms=[{plain},{far}]", "seed=0").runs[1].config
    assert (wide.model.width, wide.match.reference.model.width) == (768, 256)
    mine = [
        f"{{name: {n}, overrides: ['+mixers.{n}.name=window', '+mixers.{n}.window={w}', 'schedule.pattern={n}']}}"
        for n, w in NEAR
    ]
    made = plan("sweep=window", f"sweep.arms=[{','.join(mine)}]", "seed=0", "match=flops", "data.length=512")
    found = [match_config(run.config, 100)[1] for run in made.runs]
    assert found[0].reference_value == found[1].reference_value and not found[0].changed and found[1].changed


def test_what_a_sweep_is():
    assert asks_for_sweep(["-m", "sweep=window"]) and asks_for_sweep(["sweep=window", "x=1", "--multirun"])
    for other in (["sweep=window"], ["-m", "seed=0,1"], ["-m", "sweep=none"], ["-m", "sweep=window", "--cfg", "job"]):
        assert not asks_for_sweep(other)


def test_names_of_arms_are_names_of_folders():
    for name in ("", "..", "a/b", "-", "a b"):
        with pytest.raises(ConfigError, match="an arm of a sweep is called"):
            Arm(name, ())
