"""Initial values, all in one place.

llama style: every matrix is normal with deviation 1 / sqrt(inputs), so that activations keep their size at any width;
the last projections of mixer and MLP are divided by sqrt(2 * depth) (after GPT-2), so that the residual stream does not
grow with depth; embeddings have deviation 0.02, which with tied weights gives logits of deviation 0.02 * sqrt(width).
transnormer style: every matrix and embedding has deviation 0.02, as the published code of TransNormerLLM.
Norm weights are 1; what else a mixer owns, it sets itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from zoo.model.decoder import Decoder

STD = 0.02


@torch.no_grad()
def initialize(decoder: Decoder) -> None:
    """Set every embedding and linear layer of the decoder from torch's global generator."""
    by_inputs = decoder.config.style == "llama"
    residual = (2 * decoder.config.depth) ** -0.5
    last = {id(m) for block in decoder.layers for m in (block.mixer.out, block.mlp.down)}
    for module in decoder.modules():
        if isinstance(module, nn.Embedding) or module is decoder.head:
            nn.init.normal_(module.weight, std=STD)
        elif isinstance(module, nn.Linear):
            std = module.in_features**-0.5 if by_inputs else STD
            nn.init.normal_(module.weight, std=std * residual if by_inputs and id(module) in last else std)
