"""Which options are paths: those that the schema marks, and no others, are taken from a command line as typed."""

from pydantic import BaseModel

from zoo.data.recall.options import RecallOptions
from zoo.evaluation.tasks.base import task_class
from zoo.options.groups.data import source_model
from zoo.options.groups.optimizer import optimizer_model
from zoo.options.groups.trainer import logger_model
from zoo.options.programs import ConversionOptions, EvaluationOptions, GenerationOptions
from zoo.options.train import TrainConfig
from zoo.paths import LISTS, PATH_KEYS, IsPath
from zoo.registry import LOGGERS, OPTIMIZERS, SOURCES, TASKS
from zoo.schema.messages import models_below

HYDRAS = {"hydra.run.dir", "hydra.sweep.dir"}
NO_PATHS = {  # in whose meaning a path is only mentioned
    "data.name",
    "sweep.name",
    "match.knob",
    "task",
    "task.text_column",
    "task.names",
    "task.preset",
}


def options(model: type[BaseModel], path=""):
    """Key and field of every option of a model and of those below it."""
    for name, field in model.model_fields.items():
        key = f"{path}{name}"
        below = list(models_below(field.annotation))
        yield from ((key, field) for _ in [0] if not below)
        for one in below:
            yield from options(one, f"{key}.")


def everything():
    """All options of the programs that read Hydra's grammar."""
    for model in (TrainConfig, EvaluationOptions, GenerationOptions, ConversionOptions):
        yield from options(model)
    for name in TASKS:
        yield from options(task_class(name), "task.")
    for name in SOURCES:
        yield from options(source_model(name), "data.source.")
    for name in LOGGERS:
        yield from options(logger_model(name), f"logger.{name}.")
    for name in OPTIMIZERS:
        yield from options(optimizer_model(name), "optimizer.")
    yield from options(RecallOptions, "data.recall.")


def is_path(hint) -> bool:
    """Whether a mark is anywhere in an annotation."""
    parts = [*getattr(hint, "__args__", ()), *getattr(hint, "__metadata__", ())]
    return isinstance(hint, IsPath) or any(is_path(part) for part in parts)


def test_every_option_that_is_a_path_is_taken_as_typed_and_no_other():
    marked = {key for key, field in everything() if is_path(field.rebuild_annotation())}
    assert marked | HYDRAS == PATH_KEYS
    assert set(LISTS) <= marked


def test_an_option_whose_meaning_speaks_of_a_path_is_marked_or_named_here():
    speaks = {
        key
        for key, field in everything()
        if "str" in str(field.annotation) and any(w in (field.description or "") for w in ("folder", "file", "path"))
    }
    assert speaks - PATH_KEYS == NO_PATHS
