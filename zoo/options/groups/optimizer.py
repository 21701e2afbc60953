"""Options of the group optimizer; configs/optimizer. Those of an external optimizer are those of its signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Lt

from zoo.options.groups.entries import entry_model
from zoo.registry import OPTIMIZERS
from zoo.schema.base import Count, Number, Options, Text, option

Schedule = Literal["cosine", "wsd", "constant"]
Below1 = Annotated[Number, Ge(0), Lt(1)]


class OptimizerOptions(Options):
    """Options that all optimizers share: a name, and the schedule of the learning rate."""

    WHOLE: ClassVar[bool] = False  # whether it needs matrices that are not sharded

    name: Text = option("a registered optimizer")
    schedule: Schedule = option("how the rate falls; wsd: warm-up, stable, linear decay")
    warmup_steps: Count = option("optimizer steps in which the rate rises from zero")
    decay_fraction: Number = option("wsd: last part of the budget, in which the rate falls", ge=0, le=1)
    final_factor: Number = option("rate at the end, as a fraction of its peak", ge=0, le=1)

    @classmethod
    def chosen(cls, node: Mapping[str, Any]) -> type[OptimizerOptions]:
        """Returns the options model of the optimizer that ``node`` names.

        Raises:
            ConfigError: if there is none of this name.
        """
        return optimizer_model(node.get("name"))


def optimizer_model(name: Any) -> type[OptimizerOptions]:
    """Returns the options model of an optimizer by name.

    Raises:
        ConfigError: if there is none.
    """
    return entry_model(OPTIMIZERS, name, "optimizer.name", OptimizerOptions)


class MatrixOptions(OptimizerOptions):
    """Options that AdamW and Muon share: rate and weight decay of the matrices, and betas."""

    lr: Number = option("peak of the learning rate of the matrices", gt=0)
    weight_decay: Number = option("weight decay of the matrices, times the learning rate", ge=0)
    betas: list[Below1] = option("decays of AdamW's running means of gradients and squares", min_length=2, max_length=2)


class AdamWOptions(MatrixOptions):
    """AdamW for everything."""

    name: Literal["adamw"] = option("AdamW for everything")


class MuonOptions(MatrixOptions):
    """Muon for the matrices of the blocks, AdamW for all other parameters."""

    WHOLE = True

    name: Literal["muon"] = option("Muon for the matrices of the blocks, AdamW for embeddings, norms and vectors")
    embedding_lr: Number = option("peak of the learning rate of embeddings, head, norms and vectors", gt=0)
    momentum: Below1 = option("momentum of Muon")
