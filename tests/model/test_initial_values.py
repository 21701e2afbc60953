"""Initial values: a mixer draws its own, with the deviations that the decoder hands it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from zoo.mixers import Mixer
from zoo.mixers.softmax import SoftmaxAttention
from zoo.model import Decoder, DecoderConfig

WIDTH, DEPTH, STD = 32, 2, 0.02
OPTIONS = {"softmax": {"gate": "silu", "value_dim": 20}, "linear": {"feature_map": "taylor"}, "ssd": {"head_dim": 6}}


def build(name, style):
    torch.manual_seed(3)
    options = {key: OPTIONS[key] for key in (name,) if key in OPTIONS}
    return Decoder(
        DecoderConfig(
            vocab_size=40, width=WIDTH, depth=DEPTH, heads=4, layer_types=[name] * DEPTH, style=style, mixers=options
        )
    )


@torch.no_grad()
def draw(decoder, style):
    """Every matrix in the order of the modules, each with the deviation of a model's width, the last of its inputs."""
    last = {id(module) for block in decoder.layers for module in (block.mixer.out, block.mlp.down)}
    for module in decoder.modules():
        if isinstance(module, nn.Embedding) or module is decoder.head or (isinstance(module, nn.Linear) and style):
            nn.init.normal_(module.weight, std=STD)
        elif isinstance(module, nn.Linear):
            scale = (2 * DEPTH * module.in_features) ** -0.5 if id(module) in last else WIDTH**-0.5
            nn.init.normal_(module.weight, std=scale)


WALKED = [name for name in zoo.mixers.names() if zoo.mixers.get(name).reset_parameters is Mixer.reset_parameters]


@pytest.mark.parametrize("style", ["llama", "transnormer"])
@pytest.mark.parametrize("name", WALKED)
def test_every_attention_starts_from_the_numbers_of_one_walk_over_all_matrices(name, style, monkeypatch):
    decoder = build(name, style)
    monkeypatch.setattr(Decoder, "reset_parameters", lambda self: draw(self, style == "transnormer"))
    want = build(name, style).state_dict()
    assert decoder.state_dict().keys() == want.keys()
    for key, value in decoder.state_dict().items():
        assert torch.equal(value, want[key]), key


def test_a_mixer_decides_on_its_own_values(monkeypatch):
    asked = []
    monkeypatch.setattr(SoftmaxAttention, "reset_parameters", lambda self, *deviations: asked.append(deviations))
    build("softmax", "llama")
    assert asked == [pytest.approx((WIDTH**-0.5, 80**-0.5 / 2))] * DEPTH
    asked.clear()
    build("softmax", "transnormer")
    assert asked == [(STD, STD)] * DEPTH


def test_layers_of_rwkv7_start_as_published():
    """They give 0 at first, with values and queries turned, keys a tenth of that, and no gate of the input's."""
    assert set(zoo.mixers.names()) - {*WALKED} == {"rwkv7"}
    for layer in build("rwkv7", "llama").layers:
        mixer = layer.mixer
        one = torch.eye(WIDTH)
        for matrix, gain in ((mixer.receptance, 1), (mixer.value, 1), (mixer.key, 0.1)):
            torch.testing.assert_close(matrix.weight @ matrix.weight.mT, gain**2 * one, rtol=1e-4, atol=1e-5)
        assert not mixer.out.weight.any() and not mixer.decay.down.weight.any() and mixer.decay.up.weight.any()
