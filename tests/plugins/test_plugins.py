"""A package from outside: what it registers is chosen by name, by the same rules as what is inside."""

import sys

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import zoo
from tests.plugins.conftest import REGISTRIES
from tests.tiers import in_ci
from tests.training.conftest import write_text
from zoo import plugins
from zoo.config import ConfigError, load_run_config, to_dict
from zoo.evaluation.tasks.base import build_task, make_anew
from zoo.model import CheckpointError
from zoo.options.check import check_job
from zoo.options.command import check_command, train_help
from zoo.options.composing import compose_config
from zoo.options.programs import EvaluationOptions, read_program
from zoo.plugins import import_plugins, import_typed
from zoo.runs.loaded_run import open_run
from zoo.training.run import train

CHOSEN = ("attention=outside_linear", "data=outside_counting", "optimizer=outside_sgd", "logger=outside_lines")
SMALL = (
    "plugins=[zoo_outside]",
    "experiment=tiny",
    "data.length=32",
    "model.width=32",
    "trainer.max_steps=1",
    "trainer.accelerator=cpu",
)


def settled(*overrides):
    """The checked configuration of a command line of train.py."""
    typed = [*SMALL, *overrides]
    import_typed(typed, "train")
    return check_job(compose_config("train", typed), typed)


@pytest.fixture
def trained(outside, tmp_path):
    """A run folder with one of each."""
    train(settled(*CHOSEN, f"data.cache_dir={tmp_path / 'cache'}"), tmp_path / "run")
    return tmp_path / "run"


def forget():
    """A process that has imported nothing from outside."""
    for name in [name for name in sys.modules if name.startswith("zoo_outside")]:
        del sys.modules[name]
    plugins._named.clear()
    for registry in REGISTRIES:
        for name in registry.outside():
            del registry._entries[name]


def test_one_of_each_trains_and_its_run_is_evaluated(trained):
    run = open_run(str(trained))
    assert run.decoder.config.layer_types == ["outside_linear"] * 2
    assert run.decoder.layers[0].mixer.strength == 0.5
    assert run.config.plugins == ["zoo_outside"] and run.trained.plugins == ["zoo_outside"]
    assert run.config.data.source == {"kind": "outside_counting", "documents_per_split": 20}
    assert run.config.optimizer.lr == 0.05 and run.config.optimizer.warmup_steps == 20
    assert (trained / "lines.txt").read_text().startswith("1 ['tokens', 'train/")
    options = read_program(
        "eval", EvaluationOptions, [f"run={trained}", "plugins=zoo_outside", "task=outside_copy"], None
    )
    outcome = build_task(options.task).evaluate(run.subject, 0, make_anew)
    assert outcome.records[0].task == "outside_copy" and outcome.protocol == {"tokens": 8}


def test_the_range_of_an_annotation_holds_from_python_too(outside):
    import_plugins(["zoo_outside"])
    with pytest.raises(ValueError, match=r"^outside_linear: strength=-1: expected a finite number > 0\.$"):
        zoo.mixers.build("outside_linear", width=8, heads=2, strength=-1)


def test_a_run_folder_imports_nothing_and_says_what_it_needs(trained):
    line = r"^this run needs plugins=\[zoo_outside\]: add it\.$"
    forget()
    for load in (zoo.load, open_run, load_run_config):
        with pytest.raises(ConfigError, match=line):
            load(trained)
    with pytest.raises(ConfigError, match=line):
        settled_without = compose_config("train", [f"resume={trained}"])
        check_job(settled_without, [f"resume={trained}"])
    assert not any(name.startswith("zoo_outside") for name in sys.modules)


def test_a_run_folder_that_hides_its_plugins_imports_nothing_either(trained, tmp_path):
    """Neither a name that it records nor one that only an entry point has is imported for being in it."""
    offer(tmp_path / "installed", "late", "zoo_late", "raise RuntimeError('imported')\n")
    config = load_run_config(trained)
    config.attention, config.plugins, config.data.source = "late", [], {"kind": "late"}
    config.mixers.late = {}
    OmegaConf.save(config, trained / "config.yaml")
    typed = [f"resume={trained}"]
    with pytest.raises(ConfigError, match="unknown data source"):
        check_job(compose_config("train", typed), typed)
    file = trained / "checkpoints" / "last.ckpt"
    content = torch.load(file, weights_only=True)
    content["decoder"]["layer_types"], content["zoo"]["plugins"] = ["late"] * 2, []
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="unknown attention 'late'"):
        zoo.load(trained, plugins=["zoo_outside"])
    assert "zoo_late" not in sys.modules


def test_a_run_is_loaded_and_continued_with_its_plugin_named(trained):
    assert isinstance(zoo.load(trained, plugins=["zoo_outside"]).layers[0].mixer, zoo.mixers.get("outside_linear"))
    config = settled(f"resume={trained}", "trainer.max_steps=2")
    assert config.plugins == ["zoo_outside"]
    assert train(config, trained)["val/loss"] > 0
    assert open_run(str(trained)).trained.step == 2


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("optimizer=outside_sgd optimizer.lr=-1", r"optimizer.lr=-1: expected a number > 0"),
        ("attention=outside_liner", r"attention=outside_liner: unknown choice; did you mean outside_linear\?"),
        ("data=outside_counting data.source.documents_per_split=x", r"documents_per_split=x: expected a whole number"),
        *in_ci(
            (
                "optimizer=outside_sgd optimizer.nestrov=true",
                r"optimizer.nestrov: unknown option; did you mean optimizer.ne",
            ),
            ("optimizer=outside_sdg", r"optimizer=outside_sdg: unknown choice; did you mean outside_sgd\?"),
            (
                "attention=outside_linear mixers.outside_linear.strength=x",
                r"strength=x: expected a number > 0",
            ),
            ("attention=outside_linear mixers.outside_linear.strength=0", r"strength=0: expected a number > 0"),
            ("schedule.pattern=outside_linear+softmx", r"unknown attention 'softmx'; expected .*outside_linear"),
            ("data=outside_count", r"data=outside_count: unknown choice; did you mean outside_counting\?"),
            ("logger=outside_lines logger.outside_lines.file=null", r"logger.outside_lines.file=null: expected text"),
            ("logger=outside_lnes", r"logger=outside_lnes: unknown choice; did you mean outside_lines\?"),
        ),
    ],
)
def test_wrong_options_are_refused_in_the_words_of_those_inside(outside, typed, message):
    with pytest.raises(ValueError, match=message) as refused:
        settled(*typed.split())
    assert "\n" not in str(refused.value)


def test_wrong_options_of_a_task_too(outside):
    for typed, message in {
        "task.tokens=0": r"task.tokens=0: expected a whole number >= 1 \(tokens of the text\)",
        "task.token=3": r"task.token: unknown option; did you mean task.tokens\?",
    }.items():
        with pytest.raises(ConfigError, match=message):
            arguments = ["plugins=zoo_outside", "task=outside_copy", typed]
            build_task(read_program("eval", EvaluationOptions, arguments, None).task)


def test_an_attention_from_outside_is_mixed_with_others_and_in_the_help(outside):
    config = settled("schedule.pattern=outside_linear+softmax", "mixers.outside_linear.strength=2")
    assert config.mixers.outside_linear == {"strength": 2}
    text = train_help([*SMALL, "optimizer=outside_sgd", "data=outside_counting", "logger=outside_lines"])
    for shown in (
        "optimizer.nesterov=false",
        "data.source.documents_per_split=20",
        "logger.outside_lines.file=lines.txt",
        "outside_linear",
    ):
        assert shown in text


def test_its_files_join_the_configurations(outside):
    folder = outside / "zoo_outside" / "configs"
    for file, content in {
        "attention/outside_linear.yaml": "# @package _global_\nattention: outside_linear\n"
        "mixers:\n  outside_linear:\n    strength: 0.25\n",
        "optimizer/outside_fast.yaml": "defaults: [base, _self_]\nname: outside_sgd\nlr: 3.0\n",
        "experiment/outside_run.yaml": "# @package _global_\ndefaults:\n  - override /model: 125m\n",
    }.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(content)
    config = settled("attention=outside_linear", "optimizer=outside_fast")
    assert config.mixers.outside_linear.strength == 0.25 and config.optimizer.lr == 3.0
    assert compose_config("train", ["experiment=outside_run"]).model.width == 768
    with pytest.raises(ConfigError, match=r"optimizer=outside_fas: unknown choice; did you mean outside_fast\?"):
        settled("optimizer=outside_fas")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"plugins=\[zoo_broken\]: there is no package zoo_broken in .* start from the folder .*, or install it\.",
        ),
        ("1 / 0\n", r"plugins=\[zoo_broken\] cannot be imported: ZeroDivisionError: division by zero\. Mend it"),
        ("import no_such_thing\n", r"cannot be imported: ModuleNotFoundError: No module named 'no_such_thing'"),
        (
            "from zoo import mixers\n@mixers.register('softmax')\nclass Mine: pass\n",
            r"two attentions are called 'softmax': zoo.mixers.softmax.SoftmaxAttention and zoo_broken.Mine",
        ),
    ],
)
def test_what_cannot_be_imported_is_one_line(clean, tmp_path, content, message):
    if content is not None:
        (tmp_path / "zoo_broken.py").write_text(content)
    with pytest.raises(ConfigError, match=message) as refused:
        import_typed(["plugins=[zoo_broken]"], "train")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("names", ["../x", "a b", "zoo_outside;os"])
def test_what_is_no_name_is_refused(clean, names):
    with pytest.raises(ConfigError, match="expected names of Python packages, as plugins="):
        import_typed([f"plugins={names}"], "train")


def test_the_current_folder_hides_no_installed_package(outside):
    (outside / "yaml.py").write_text("raise RuntimeError('not this one')\n")
    import_plugins(["zoo_outside"])
    assert sys.path[-1] == str(outside) and yaml.__file__ != str(outside / "yaml.py")


def test_a_file_of_configs_that_asks_for_a_plugin_is_told_where_to_say_it(clean):
    with pytest.raises(ConfigError, match=r"this run needs plugins=\[zoo_elsewhere\]: add it"):
        typed = ["experiment=tiny", "plugins=[zoo_elsewhere]"]
        check_job(compose_config("train", typed), typed)


def offer(folder, name, module, code):
    """An installed package with an entry point."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(code)
    metadata = folder / f"{module}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[attention_zoo.plugins]\n{name} = {module}\n")
    sys.path.append(str(folder)) if str(folder) not in sys.path else None


LINEAR = """
from zoo import mixers
from zoo.mixers.linear import LinearAttention

@mixers.register("{name}")
class Late(LinearAttention):
    def __init__(self, width: int, heads: int, depth: int = 1, layer: int = 0, strength: float = 0.5) -> None:
        super().__init__(width=width, heads=heads, depth=depth, layer=layer)
"""


def test_installed_packages_are_asked_for_a_name_that_is_not_inside_and_only_then(clean, tmp_path):
    offer(tmp_path / "installed", "late", "zoo_late", LINEAR.format(name="late"))
    offer(tmp_path / "installed", "another", "zoo_another", LINEAR.format(name="another"))
    zoo.mixers.build("softmax", width=8, heads=2)
    check_command(["attention=window", "trainer.accelerator=cpu"])
    assert "zoo_late" not in sys.modules
    config = check_job(compose_config("train", ["attention=late", "trainer.accelerator=cpu"]), [])
    assert config.attention == "late" and config.mixers.late.strength == 0.5
    assert config.plugins == ["zoo_late"]  # so that its run folder says what it needs
    assert "zoo_another" not in sys.modules
    mixer = zoo.mixers.build("another", width=8, heads=2)
    assert mixer(torch.zeros(1, 3, 8)).shape == (1, 3, 8)


def test_an_installed_package_that_fails_is_a_warning_with_its_name(clean, tmp_path):
    offer(tmp_path / "installed", "broken", "zoo_fails", "raise RuntimeError('of its own\\nmaking')\n")
    offer(tmp_path / "installed", "late", "zoo_late", LINEAR.format(name="late"))
    with (
        pytest.warns(
            UserWarning, match=r"the plugin broken \(zoo_fails\) cannot be imported: RuntimeError: of its own"
        ),
        pytest.raises(ValueError, match="unknown attention 'nowhere': expected one of adaptive"),
    ):
        zoo.mixers.build("nowhere", width=8, heads=2)
    assert "late" in zoo.mixers.names()


def test_a_recall_task_from_outside_is_trained_on_and_evaluated(clean, tmp_path):
    (tmp_path / "zoo_recall.py").write_text(
        "from dataclasses import dataclass\nfrom zoo.registry import RECALL_TASKS\n"
        "from zoo.data.recall.tasks.passkey import Passkey\n\n"
        "@RECALL_TASKS.register('outside_key')\n@dataclass(frozen=True)\n"
        "class Key(Passkey):\n    name = 'outside_key'\n"
    )
    typed = ["plugins=zoo_recall", "task=outside_key", "task.samples=3"]
    task = build_task(read_program("eval", EvaluationOptions, typed, None).task)
    assert (task.name, task.samples) == ("outside_key", 3)
    config = settled("plugins=[zoo_recall]", "data=recall_mix", "+data.recall.tasks.outside_key.weight=2")
    assert to_dict(config.data.recall)["tasks"]["outside_key"] == {"weight": 2}


def test_text_beside_the_package_is_read_by_the_sources_inside(outside, tmp_path):
    write_text(tmp_path / "books")
    assert settled("data=text", f"data.path={tmp_path / 'books'}").data.source.kind == "text"
