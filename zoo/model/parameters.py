"""Groups of a decoder's parameters, for optimizers."""

from __future__ import annotations

from torch import nn

from zoo.model.decoder import Decoder


def split_parameters(decoder: Decoder) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Splits the parameters into matrices of the blocks' linear layers, and all others."""
    chosen = {id(m.weight) for m in decoder.blocks.modules() if isinstance(m, nn.Linear)}
    parameters = list(decoder.parameters())
    return [p for p in parameters if id(p) in chosen], [p for p in parameters if id(p) not in chosen]
