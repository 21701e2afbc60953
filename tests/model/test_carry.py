"""What the layers of one forward pass share: positions and rotary tables, made once by the decoder."""

from __future__ import annotations

import warnings

import pytest
import torch

from zoo.mixers.parts import positions
from zoo.model import Decoder, DecoderConfig

LAYERS = ["softmax", "lightning", "near", "retention", "half", "window"]
OPTIONS = {
    "near": {"name": "softmax", "rope_theta": 100.0},
    "half": {"name": "softmax", "rope_fraction": 0.5},
    "lightning": {"lrpe": "all"},
}
DOCUMENTS = torch.tensor([[0] * 9 + [1] * 21, [3] * 30])


def build(layers=LAYERS):
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=50, width=32, depth=len(layers), heads=4, layer_types=list(layers), mixers=OPTIONS
    )
    return Decoder(config).eval()


def draw(length=30):
    return torch.randint(50, (2, length))


@pytest.fixture
def made(monkeypatch):
    """Base and width of every table that is made."""
    made, table = [], positions.rotary_table

    def count(index, theta, width, dtype):
        made.append((theta, width))
        return table(index, theta, width, dtype)

    monkeypatch.setattr(positions, "rotary_table", count)
    return made


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["plain", "packed"])
@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
def test_each_table_is_made_once_in_a_forward_and_backward_pass(made, documents, checkpointed):
    decoder = build().train()
    decoder.checkpoint_activations = checkpointed
    decoder(draw(), documents).sum().backward()
    assert sorted(made) == [(100.0, 8), (10000.0, 4), (10000.0, 8)]


@torch.no_grad()
def test_each_table_is_made_once_for_every_piece_of_a_cache(made):
    decoder = build()
    cache = decoder.new_cache(2)
    for piece in draw(8).split([5, 1, 2], 1):
        decoder(piece, cache=cache)
    assert len(made) == 3 * 3


@torch.no_grad()
@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["plain", "packed"])
def test_layers_by_themselves_do_what_they_do_in_the_decoder(documents):
    decoder, ids = build(), draw()
    x = decoder.embedding(ids)
    for block in decoder.blocks:
        x = block(x, documents)
    assert torch.equal(decoder.norm(x), decoder.hidden(ids, documents))


@torch.no_grad()
def test_ragged_rows_continue_at_their_own_positions():
    decoder, ids = build().double(), draw(12)
    cache, lengths = decoder.new_cache(2), torch.tensor([7, 4])
    decoder(ids[:, :7], cache=cache, lengths=lengths)
    rows = torch.stack([ids[0, 7:10], ids[1, 4:7]])
    got = decoder(rows, cache=cache)
    for row, start in enumerate(lengths.tolist()):
        want = decoder(ids[row : row + 1, : start + 3])[:, start:]
        torch.testing.assert_close(got[row : row + 1], want, rtol=1e-9, atol=1e-9)


def handing(layers):
    """A decoder in fp64 whose layers of rwkv7 are as if trained: at first they give 0."""
    decoder = build(layers).double().train()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "mixer" in name and not parameter.any():
                parameter.normal_(std=0.3)
    return decoder


@torch.no_grad()
def of_last(layers, moved, changed=None):
    """What the last layer gives that takes ``moved`` of the first one's values, with those of a layer doubled."""
    decoder, seen = handing(layers), []
    decoder.layers[-1].mixer.move.bias.fill_(moved)
    if changed is not None:
        decoder.layers[changed].mixer.value.weight.mul_(2)
    decoder.layers[-1].mixer.register_forward_hook(lambda _, __, y: seen.append(y))
    torch.manual_seed(1)
    decoder(draw(), DOCUMENTS)
    return seen[0]


@pytest.mark.parametrize("layers", [["rwkv7"] * 3, ["softmax", "rwkv7", "rwkv7"]], ids="+".join)
def test_values_of_the_first_layer_of_its_kind_reach_those_above(layers):
    all_of_first, all_of_own = of_last(layers, 100.0), of_last(layers, -100.0)
    torch.testing.assert_close(of_last(layers, 100.0, -1), all_of_first, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(of_last(layers, -100.0, -1), all_of_own, 1e-3, 1e-3)
    assert not torch.allclose(of_last(layers, 100.0, layers.index("rwkv7")), all_of_first, 1e-3, 1e-3)


@pytest.mark.parametrize("layers", [["rwkv7"] * 3, ["softmax", "rwkv7", "rwkv7"]], ids="+".join)
def test_values_of_the_first_layer_have_the_same_gradients_when_the_others_are_checkpointed(layers):
    decoder, ids, found = handing(layers), draw(), []
    for checkpointed in (False, True):
        decoder.checkpoint_activations = checkpointed
        loss = decoder(ids, DOCUMENTS).square().mean()
        found.append(torch.autograd.grad(loss, [*decoder.parameters()], allow_unused=True))
    for (name, _), kept, anew in zip(decoder.named_parameters(), *found):
        torch.testing.assert_close(anew, kept, rtol=1e-12, atol=1e-12, msg=name)
    assert found[0][[*dict(decoder.named_parameters())].index(f"blocks.{len(layers) - 1}.mixer.move.bias")].any()


@pytest.mark.slow
def test_a_layer_that_hands_on_compiles_in_one_graph_with_checkpoints():
    decoder, ids = handing(["rwkv7"] * 3), draw()
    decoder.checkpoint_activations = True
    torch.compiler.reset()
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True, dynamic=False)
    results = [
        torch.autograd.grad(run(ids, DOCUMENTS).square().mean(), [*decoder.parameters()]) for run in (decoder, compiled)
    ]
    for want, got in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_documents_of_another_shape_are_refused_before_positions_are_counted():
    with pytest.raises(ValueError, match=r"documents has shape \(2, 29\), expected \(2, 30\)"):
        build()(draw(), DOCUMENTS[:, :29])


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "checkpointed"), [("aot_eager", True), ("inductor", False)])
def test_a_decoder_compiles_in_one_graph_without_a_word_about_complex_numbers(backend, checkpointed):
    decoder, ids = build(["softmax", "lightning", "retention"]).train(), draw()
    decoder.checkpoint_activations = checkpointed
    torch.compiler.reset()
    compiled = torch.compile(decoder, backend=backend, fullgraph=True, dynamic=False)
    results = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for run in (decoder, compiled):
            y = run(ids, DOCUMENTS)
            y.square().mean().backward()
            results.append([y.detach(), *(p.grad.clone() for p in decoder.parameters())])
            decoder.zero_grad()
    assert not [warning for warning in said if "omplex" in str(warning.message)]
    for got, want in zip(results[1], results[0]):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
