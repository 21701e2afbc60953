"""Costs of one layer of every attention over contexts from 1k to 1M."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from zoo import mixers
from zoo.costs.cost_curves import CONTEXTS, Panel, draw_curves
from zoo.costs.plan_text import binary, unit

WIDTH, HEADS, DEPTH, LAYER = 2048, 16, 24, 12


@dataclass(frozen=True)
class LayerCosts:
    """Costs of one attention with its default options, a value per context; caches in bf16, states in fp32."""

    training: list[float]
    decoding: list[float]
    cache: list[float]


def layer_costs(name: str) -> LayerCosts:
    """Returns forward FLOPs per token in training, FLOPs of the next token, and bytes of the cache of a sequence."""
    with torch.device("meta"):
        mixer = mixers.build(name, width=WIDTH, heads=HEADS, depth=DEPTH, layer=LAYER)
    costs = [mixer.cost(context) for context in CONTEXTS]
    return LayerCosts(
        [cost.flops_per_token for cost in costs],
        [cost.decode_flops_per_token for cost in costs],
        [cost.cache_bytes for cost in costs],
    )


def panels(costs: dict[str, LayerCosts]) -> list[Panel]:
    """Returns the panels for training, decoding and memory."""
    return [
        Panel(
            "training, forward",
            "FLOPs per token",
            {name: cost.training for name, cost in costs.items()},
            lambda y: unit(y, "FLOP"),
        ),
        Panel(
            "decoding the next token",
            "FLOPs",
            {name: cost.decoding for name, cost in costs.items()},
            lambda y: unit(y, "FLOP"),
        ),
        Panel(
            "kept while decoding",
            "bytes per sequence",
            {name: cost.cache for name, cost in costs.items()},
            binary,
            base=32,
        ),
    ]


def draw_costs(file: Path, costs: dict[str, LayerCosts]) -> list[Path]:
    """Plots the costs of all attentions in one figure, and returns the files."""
    title = f"one layer, width {WIDTH:,}, {HEADS} heads, default options; curves within 3 % share a label"
    return draw_curves(file, title, panels(costs))
