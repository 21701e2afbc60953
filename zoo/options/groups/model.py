"""Options of the groups model, schedule, seed and sharing of heads."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Le

from zoo.conversion.head_merging import Method
from zoo.schema.base import Flag, Options, Positive, Text, Whole, option

WIDEST, DEEPEST = 2**20, 1024  # of anything that was ever trained, and more


class ModelOptions(Options):
    """The decoder's sizes; configs/model."""

    name: Text = option("name of the size, for the summary of a run")
    width: Annotated[Whole, Ge(1), Le(WIDEST)] = option("width of the model, a multiple of model.heads")
    depth: Annotated[Whole, Ge(1), Le(DEEPEST)] = option("layers of the model")
    heads: Annotated[Whole, Ge(1), Le(WIDEST)] = option("query heads of every layer")
    style: Literal["llama", "transnormer"] = option(
        "llama: RMSNorm and SwiGLU; transnormer: SRMSNorm, SGLU and scaled embeddings"
    )
    mlp_width: Annotated[Whole, Ge(1), Le(WIDEST)] | None = option(
        "hidden width of the MLP; null: 8/3 of the width, rounded up to a multiple of 64"
    )
    tie_embeddings: Flag = option("whether the head has the weights of the embedding")
    separators: list[str] = option("tokens that contain one of these are marked, for attentions with separators")


class ScheduleOptions(Options):
    """Which attention each layer has; configs/schedule."""

    pattern: str = option(
        "NAME or NxNAME joined by +, cycled to the depth; the name attention is the one that attention= chooses"
    )
    patch: str | None = option(
        "INDEX:NAME or INDEX:NxNAME joined by +, which replace layers, as 0:softmax+-2:2xsoftmax"
    )
    k: Annotated[Whole, Ge(0), Le(DEEPEST)] | None = option(
        "number of softmax layers at the ends, with schedule=softmax_first, softmax_last or sandwich", default=None
    )


class ShareHeadsOptions(Options):
    """Bringing key heads together while training; ``share_heads`` of configs/train.yaml."""

    kv_heads: Positive | None = option(
        "key heads per softmax layer at the end, for scripts/convert.py afterwards; null: they stay as they are"
    )
    method: Method = option("what a group of heads becomes")
    steps: Positive = option("optimizer steps until the heads of a group are equal")
