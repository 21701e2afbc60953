import math

import pytest
import torch

from zoo.model import Decoder, DecoderConfig
from zoo.model.parameters import split_parameters
from zoo.training.optimizers.build import build_optimizer, rate_factor
from zoo.training.optimizers.muon import Muon, orthogonalize


def decoder():
    torch.manual_seed(0)
    return Decoder(DecoderConfig(50, 32, 2, 2, ["lightning", "softmax"]))


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 8, 32), (2, 40, 8)])
def test_orthogonalize_brings_singular_values_near_one(shape):
    torch.manual_seed(0)
    result = orthogonalize(torch.randn(shape))
    values = torch.linalg.svdvals(result)
    assert result.shape == shape and values.min() > 0.3 and values.max() < 1.3
    full = torch.linalg.svd(torch.randn(4, 12, 20), full_matrices=False)
    spread = full.U @ torch.diag_embed(torch.linspace(0.5, 1, 12).expand(4, -1)) @ full.Vh
    assert torch.linalg.svdvals(orthogonalize(spread)).sub(1).abs().max() < 0.35


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else():
    model = decoder()
    hidden, rest = split_parameters(model)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {id(p) for p in hidden} | {id(p) for p in rest} == set(names) and len(hidden) + len(rest) == len(names)
    assert all(names[id(p)].startswith("blocks.") and p.dim() == 2 for p in hidden)
    assert {names[id(p)] for p in rest} >= {"embedding.weight", "norm.weight", "blocks.0.mixer.lrpe.log_ratio"}


def test_the_adamw_part_of_muon_is_torch_adamw():
    torch.manual_seed(0)
    a = torch.nn.Parameter(torch.randn(7, 3))
    b = torch.nn.Parameter(a.detach().clone())
    ours = Muon([{"params": [a], "lr": 0.01, "muon": False, "weight_decay": 0.1, "betas": (0.9, 0.95)}])
    theirs = torch.optim.AdamW([b], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(5):
        gradient = torch.randn(7, 3)
        a.grad, b.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(a, b)


def test_muon_step_has_the_size_it_says_and_refuses_vectors():
    p = torch.nn.Parameter(torch.zeros(16, 64))
    optimizer = Muon([{"params": [p], "lr": 0.1, "muon": True, "weight_decay": 0.0, "momentum": 0.9}])
    p.grad = torch.randn(16, 64)
    optimizer.step()
    assert p.pow(2).mean().sqrt().item() == pytest.approx(0.1 * 0.2, rel=0.3)
    with pytest.raises(ValueError, match="whole matrices"):
        Muon([{"params": [torch.nn.Parameter(torch.zeros(3))], "lr": 0.1, "muon": True}])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_spares_embeddings_and_norms(name):
    model = decoder()
    options = {"momentum": 0.95, "embedding_lr": 0.01} if name == "muon" else {}
    optimizer = build_optimizer(model, name, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95), **options)
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert id(model.embedding.weight) not in decayed and id(model.blocks[0].mixer.out.weight) in decayed


def test_schedules():
    cosine = [rate_factor(s, 100, "cosine", 10, 0.2, 0.1) for s in range(101)]
    assert cosine[0] == pytest.approx(0.1) and cosine[9] == 1.0 and cosine[10] == 1.0
    assert cosine[100] == pytest.approx(0.1) and cosine[55] == pytest.approx(
        0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2
    )
    wsd = [rate_factor(s, 100, "wsd", 10, 0.2, 0.0) for s in range(101)]
    assert wsd[10:81] == [1.0] * 71 and wsd[90] == pytest.approx(0.5) and wsd[100] == 0.0
    assert {rate_factor(s, 100, "constant", 0, 0.2, 0.1) for s in range(120)} == {1.0}
    assert rate_factor(500, 100, "cosine", 10, 0.2, 0.1) == pytest.approx(0.1)
