"""Options of the group optimizer; configs/optimizer."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Lt

from zoo.schema.base import Count, Number, Options, option

Below1 = Annotated[Number, Ge(0), Lt(1)]


class OptimizerOptions(Options):
    """What all optimizers share: weight decay, betas and the schedule of the learning rate."""

    lr: Number = option("peak of the learning rate of the matrices", gt=0)
    weight_decay: Number = option("weight decay of the matrices, times the learning rate", ge=0)
    betas: list[Below1] = option("decays of AdamW's running means of gradients and squares", min_length=2, max_length=2)
    schedule: Literal["cosine", "wsd", "constant"] = option("how the rate falls; wsd: warm-up, stable, linear decay")
    warmup_steps: Count = option("optimizer steps in which the rate rises from zero")
    decay_fraction: Number = option("wsd: last part of the budget, in which the rate falls", ge=0, le=1)
    final_factor: Number = option("rate at the end, as a fraction of its peak", ge=0, le=1)


class AdamWOptions(OptimizerOptions):
    """AdamW for everything."""

    name: Literal["adamw"] = option("AdamW for everything")


class MuonOptions(OptimizerOptions):
    """Muon for the matrices of the blocks, AdamW for the rest."""

    name: Literal["muon"] = option("Muon for the matrices of the blocks, AdamW for embeddings, norms and vectors")
    embedding_lr: Number = option("peak of the learning rate of embeddings, head, norms and vectors", gt=0)
    momentum: Below1 = option("momentum of Muon")
