"""What a plan says of the layers is what the layers say of themselves, whatever their class."""

import pytest
import torch

from zoo.costs.hardware import load_hardware
from zoo.costs.plan_text import Request, describe
from zoo.model import Decoder, DecoderConfig

SIZES = {"vocab_size": 100, "width": 64, "heads": 4, "depth": 2}


def said(layers, **mixers):
    """The plan of a decoder at a context of 1,000 tokens."""
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig(layer_types=layers, mixers=mixers, **SIZES))
    return describe("small", decoder, Request(1000, 1, "bf16"), load_hardware("h100", []))


def test_windows_reach_as_far_as_all_layers_say():
    lines = said(["near", "far"], near={"name": "window", "window": 8}, far={"name": "window", "window": 32})
    assert "by its windows alone a token meets 39 tokens after 2 layers" in lines  # 7 + 31 before it, and itself
    assert "by its windows" not in said(["window", "softmax"])


@pytest.mark.parametrize(
    ("options", "heads"),
    [({}, "16 ("), ({"head_dim": 32}, "32 ("), ({"value_dim": 48}, "16 and values of 48 (")],
)
def test_tiles_are_for_the_widest_heads_of_any_layer(options, heads):
    assert f"tiles for heads of {heads}" in said(["softmax", "wide"], wide={"name": "lightning", **options})
