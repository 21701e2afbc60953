"""Options of the groups sweep and match; configs/sweep, configs/match."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import ConfigDict

from zoo.costs.matching import Quantity
from zoo.schema.base import Count, Flag, Number, Options, Positive, Text, Whole, option

RuleName = Literal["kv_heads", "mixers", "lengths", "leave_one_out", "one_layer"]


class MatchOptions(Options):
    """Matching: an integer is solved so that a run costs what a reference costs."""

    quantity: Quantity | None = option("what is made equal to that of the reference")
    knob: str = option("path of the whole number that is solved for, as mixers.window.window or mixers.gqa.kv_heads")
    reference: dict[str, Any] | None = option(
        "what the reference has; all else, the knob's value too, is as in the run itself"
    )
    tolerance: Number = option("largest difference, as part of the reference; beyond it the run is refused", gt=0)
    context: Positive | None = option("tokens at which FLOPs and cache are counted; null: data.length")
    step: Positive | None = option(
        "multiples of it are tried; null: 1, but 8 for model.mlp_width where that comes within the tolerance"
    )


class AxisOptions(Options):
    """Axis of a sweep: the option in which its arms differ."""

    key: str | None = option("option that the arms differ in; a list of it on the command line replaces the arms")
    label: Text | None = option("its name in pictures")


class ArmOptions(Options):
    """One arm of a sweep."""

    name: Text = option("name of the arm, also of its folder")
    overrides: list[str] = option("what the arm changes", default=[])


class SweptTask(Options):
    """One task of eval.py after training."""

    name: str = option("a file of configs/task")
    overrides: list[str] = option("as for eval.py", default=[])


class SlurmOptions(Options):
    """How runs are submitted; other keywords are those of submitit's update_parameters."""

    model_config = ConfigDict(extra="allow")

    cluster: Literal["slurm", "local"] = option("local: processes of this machine, to try it")
    timeout_min: Positive = option("minutes that a run may take")
    gpus_per_node: Count = option("GPUs of a run")
    cpus_per_task: Positive = option("CPUs of a run")


class SweepOptions(Options):
    """Sweep, a series of runs: python train.py -m sweep=NAME."""

    name: Text | None = option("name of the sweep, also of its folder sweeps/NAME; another one is hydra.sweep.dir=")
    question: str | None = option("that the sweep answers")
    axis: AxisOptions = option("what the arms differ in")
    arms: list[ArmOptions] | None = option("list of {name, overrides}")
    rule: RuleName | None = option("makes the arms, where none are listed")
    overrides: list[str] = option("overrides of every arm; those of the command line come after them")
    reference: Text | None = option("arm that the others are compared with; null: the first")
    seeds: list[Count] = option("seeds of each arm; or seed=0,1,2", min_length=1)
    tasks: list[str | SweptTask] | None = option("tasks of eval.py, after training")
    match: Quantity | None = option("what all arms are made equal in; null: as they are")
    jobs: Annotated[Whole, Ge(1), Le(10_000)] = option("runs at the same time")
    devices_per_arm: Positive | None = option("GPUs of one run; null: those that there are, divided")
    retry: Flag = option("whether what failed is tried again when the sweep is continued")
    launcher: Literal["local", "slurm"] = option("where runs start")
    slurm: SlurmOptions = option("options of launcher=slurm")


class NoSweep(Options):
    """No sweep: one run, or a plain multirun."""

    name: None = option("name of the sweep; null: one run")
