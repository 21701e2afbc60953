"""Learned distances: what is kept, where the gradient of the choice comes from, and that it finds what matters."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

import zoo

HEADS, BLOCK = 2, 16
ESTIMATORS = ("straight_through", "gumbel")


def build(**options):
    torch.manual_seed(0)
    given = {"width": 16, "heads": HEADS, "block": BLOCK, "top_k": 2, "reach": 5, "global_blocks": 1} | options
    mixer = zoo.mixers.build("learned_sparse", **given).double()
    if not mixer.frozen:
        mixer.logits.data.normal_()
    return mixer


def draw(length, batch=2):
    return torch.randn(batch, length, 16, dtype=torch.float64)


def heads(mixer, x):
    parts = (mixer.query, mixer.key, mixer.value)
    return [part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts]


def distances(length):
    block = torch.arange(length) // BLOCK
    return block[:, None] - block


def dense(mixer, x, bias, global_blocks=1):
    """Attention with ``bias (H, reach)`` of the distances in blocks, -inf for none; 0 for the first blocks."""
    q, k, v = heads(mixer, x)
    far = torch.full((HEADS, 1), -torch.inf, dtype=x.dtype)
    distance = distances(x.shape[1])
    scores = q @ k.mT / q.shape[-1] ** 0.5
    added = torch.cat([bias, far], 1)[:, distance.clamp(0, bias.shape[1])]
    added = torch.where(torch.arange(x.shape[1]) < global_blocks * BLOCK, 0, added)
    shown = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    weights = (scores + added).masked_fill(~shown, -torch.inf).softmax(-1)
    return mixer.out((weights @ v).transpose(1, 2).flatten(2))


def hard_bias(scores, k):
    """0 for the own block and the k best distances of each head, -inf for others."""
    bias = torch.full((HEADS, scores.shape[1] + 1), -torch.inf, dtype=torch.float64)
    bias[:, 0] = 0
    return bias.scatter(1, scores.topk(k).indices + 1, 0.0)


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("global_blocks", [0, 1, 2])
def test_the_values_are_those_of_the_best_distances(estimator, global_blocks):
    mixer, x = build(estimator=estimator, global_blocks=global_blocks, rope_theta=None).eval(), draw(150)
    want = dense(mixer, x, hard_bias(mixer.logits.detach(), 2), global_blocks)
    close(mixer(x), want)
    with torch.no_grad():
        close(mixer(x), want)


def test_training_without_noise_has_no_gap_to_evaluation():
    mixer, x = build().train(), draw(150)
    y = mixer(x)
    assert torch.equal(y, mixer.eval()(x))
    with torch.no_grad():
        assert torch.equal(y, mixer(x))


def test_equal_logits_keep_the_nearest_blocks():
    mixer = zoo.mixers.build("learned_sparse", width=16, heads=2, block=16, top_k=3, reach=9, global_blocks=0)
    assert mixer.pattern.lists(torch.tensor([7])).tolist() == [[[4, 5, 6, 7]]] * 2


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_distances_and_a_long_reach_are_full_attention(estimator):
    mixer, full, x = (
        build(top_k=9, reach=10, estimator=estimator),
        zoo.mixers.build("softmax", width=16, heads=2),
        draw(150),
    )
    full = full.double()
    full.load_state_dict(mixer.state_dict(), strict=False)
    close(mixer(x), full(x))


def test_a_distance_beyond_the_reach_is_never_read():
    mixer, x = build(top_k=4, global_blocks=0), draw(96).requires_grad_()
    (grad,) = torch.autograd.grad(mixer(x)[0, -1].sum(), x)
    assert grad[0].unflatten(0, (6, BLOCK)).any(-1).any(-1).tolist() == [False, True, True, True, True, True]


@pytest.mark.parametrize("documents", [None, torch.zeros(2, 150, dtype=torch.long)], ids=["plain", "packed"])
def test_straight_through_takes_the_gradient_of_all_distances(documents):
    mixer, x, temperature = build(temperature=0.7, rope_theta=None), draw(150), 0.7
    weight = torch.randn_like(x)
    grads = torch.autograd.grad((mixer(x, documents=documents) * weight).sum(), [mixer.logits, mixer.query.weight])
    logits = mixer.logits.detach().requires_grad_()
    soft = dense(mixer, x, torch.cat([torch.zeros(HEADS, 1), F.logsigmoid(logits / temperature)], 1))
    close(grads[0], *torch.autograd.grad((soft * weight).sum(), logits))
    hard = dense(mixer, x, hard_bias(logits.detach(), 2))
    close(grads[1], *torch.autograd.grad((hard * weight).sum(), mixer.query.weight))
    assert grads[0].all()


@pytest.mark.parametrize("documents", [None, torch.zeros(2, 150, dtype=torch.long)], ids=["plain", "packed"])
def test_gumbel_takes_the_gradient_of_the_chosen_distances(documents):
    mixer, x = build(estimator="gumbel", temperature=0.7, rope_theta=None), draw(150)
    weight = torch.randn_like(x)
    grads = torch.autograd.grad((mixer(x, documents=documents) * weight).sum(), [mixer.logits, mixer.query.weight])
    scores = (mixer.logits + 0.7 * mixer.noise).detach()
    chosen = hard_bias(scores, 2).requires_grad_()
    y = dense(mixer, x, chosen)
    of_bias, of_query = torch.autograd.grad((y * weight).sum(), [chosen, mixer.query.weight])
    want = torch.where(chosen == 0, of_bias, 0)[:, 1:] * torch.sigmoid(-scores / 0.7) / 0.7
    close(grads[0], want)
    close(grads[1], of_query)
    assert (grads[0] != 0).sum().item() == 2 * HEADS


def test_noise_is_drawn_for_a_step_and_left_out_of_evaluation():
    mixer, x = build(estimator="gumbel", temperature=3.0).train(), draw(150)
    outputs = []
    for step in (5, 6, 5):
        mixer.start_step(step)
        outputs.append(mixer(x))
        assert torch.equal(mixer(x), outputs[-1])
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])
    close(mixer.eval()(x), dense_of(mixer, x))
    others = [build(estimator="gumbel", **how) for how in ({"seed": 1}, {"depth": 2, "layer": 1})]
    for other in others:
        other.start_step(5)
        assert not (other.noise == mixer.noise).any()


def dense_of(mixer, x):
    """The hard pattern with the positions of the mixer."""
    frozen = copy.deepcopy(mixer)
    frozen.freeze()
    return frozen(x)


def test_noise_is_gumbel_distributed():
    mixer = zoo.mixers.build("learned_sparse", width=64, heads=32, reach=65, estimator="gumbel")
    draws = []
    for step in range(20):
        mixer.start_step(step)
        draws.append(mixer.noise.double().flatten())
    noise = torch.cat(draws)
    assert noise.unique().numel() > 0.99 * noise.numel()
    for point in (-1.0, 0.0, 1.0, 3.0):
        assert ((noise <= point).double().mean() - torch.exp(-torch.exp(torch.tensor(-point)))).abs() < 0.01


def test_the_noise_comes_back_with_a_checkpoint():
    mixer, other, x = build(estimator="gumbel"), build(estimator="gumbel"), draw(150)
    mixer.start_step(7)
    assert not torch.equal(other(x), mixer(x))
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(x), mixer(x))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_freezing_keeps_the_values_and_ends_the_training_of_the_logits(estimator):
    mixer, x = build(estimator=estimator).eval(), draw(150)
    want, names = mixer(x), list(mixer.state_dict())
    mixer.freeze()
    mixer.freeze()
    close(mixer(x), want)
    close(mixer.train()(x), want)
    assert "logits" not in dict(mixer.named_parameters())
    assert sorted(mixer.state_dict()) == sorted(names)
    assert mixer.pattern is mixer.pattern
    assert mixer.cost(100).parameters == sum(p.numel() for p in mixer.parameters())


def test_a_frozen_mixer_takes_the_pattern_of_a_checkpoint():
    mixer, frozen, x = build().eval(), build(frozen=True), draw(150)
    assert not torch.equal(frozen(x), mixer(x))
    frozen.load_state_dict(mixer.state_dict())
    close(frozen(x), mixer(x))
    mixer.load_state_dict(frozen.state_dict())
    close(copy.deepcopy(frozen)(x), mixer(x))


@pytest.mark.parametrize("estimator", ["straight_through", "gumbel"])
def test_evaluation_remembers_its_pattern_until_the_logits_change(estimator):
    mixer, x = build(estimator=estimator).eval(), draw(70)
    first = mixer.pattern
    assert mixer.pattern is first and mixer(x).isfinite().all()
    with torch.no_grad():
        mixer.logits.neg_()
    second, y = mixer.pattern, mixer(x)
    assert second is not first and mixer.pattern is second
    mixer.train()
    mixer.logits.data.neg_()  # without a trace in the version of the parameter
    mixer.eval()
    assert mixer.pattern is not second and not torch.equal(mixer(x), y)
    mixer.load_state_dict(mixer.state_dict() | {"logits": -mixer.logits.detach()})
    assert torch.equal(mixer(x), y)
    mixer.train()
    assert mixer.pattern is not mixer.pattern


def test_a_frozen_pattern_does_not_depend_on_the_precision_of_the_logits():
    mixer = build()
    mixer.logits.data = 1 + torch.arange(4).double().expand(HEADS, 4) * 1e-9
    mixer.freeze()
    want = mixer.pattern.lists(torch.arange(9))
    assert torch.equal(mixer.to(torch.bfloat16).pattern.lists(torch.arange(9)), want)
    assert want[0, 8].tolist() == [0, 4, 5, 8]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_of_the_module_reads_the_same_blocks(frozen, dtype):
    """Before and after evaluation begins, with logits that are equal in few bits, and back from a state dict."""
    how = {"width": 64, "heads": 8, "block": 16}
    for seed in range(10):
        torch.manual_seed(seed)
        mixer = zoo.mixers.build("learned_sparse", **how)
        with torch.no_grad():
            mixer.logits.add_(0.05 * torch.randn_like(mixer.logits) + 2 * torch.randn(8, 1))
        if frozen:
            mixer.freeze()
        want, logits = mixer.pattern.lists(torch.arange(40)), mixer.logits.detach().clone()
        late, early = copy.deepcopy(mixer).eval(), copy.deepcopy(mixer).to(dtype).eval()
        assert torch.equal(late.pattern.lists(torch.arange(40)), want)
        for cast in (late.to(dtype), early):
            assert torch.equal(cast.pattern.lists(torch.arange(40)), want)
            assert cast.out.weight.dtype == dtype and torch.equal(cast.logits, logits)
        back = zoo.mixers.build("learned_sparse", **how).eval()
        back.load_state_dict(early.state_dict())
        assert torch.equal(back.pattern.lists(torch.arange(40)), want)


def test_logits_take_any_other_move():
    mixer = zoo.mixers.build("learned_sparse", width=16, heads=2)
    assert mixer.double().logits.dtype == mixer.noise.dtype == torch.float64
    assert mixer.bfloat16().logits.dtype == mixer.noise.dtype == torch.float32
    mixer.logits.square().sum().backward()
    assert mixer.half().logits.grad.dtype == torch.float32
    mixer.freeze()
    moved = mixer.to("meta", torch.bfloat16)
    assert moved.logits.is_meta and moved.logits.dtype == torch.float32 and moved.kept.is_meta


def test_costs_are_those_of_the_kept_blocks():
    how = {"width": 64, "heads": 2, "block": 16, "top_k": 4, "reach": 32}
    mixer = zoo.mixers.build("learned_sparse", **how)
    assert mixer.cost(10_000).decode_flops_per_token == 8 * 64**2 + 4 * 64 * 6 * 16
    expected = 2 * 4 * 64**2 + 4 * 64 * (5 * 16 + 8.5)
    assert mixer.cost(100_000).flops_per_token == pytest.approx(expected, rel=0.01)
    with torch.device("meta"):
        assert zoo.mixers.build("learned_sparse", **how).cost(500) == mixer.cost(500)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_it_finds_the_one_distance_that_matters(estimator):
    """The target is the content of the block three before the own one, which a uniform attention can read."""
    torch.manual_seed(1)
    how = {"top_k": 1, "reach": 7, "global_blocks": 0, "block": BLOCK, "estimator": estimator, "rope_theta": None}
    mixer = zoo.mixers.build("learned_sparse", width=8, heads=1, **how)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=0.05)
    assert (mixer.eval()._best() == 1).all()
    mixer.train()
    for step in range(150):
        level = torch.randn(4, 8, 1, 8).expand(-1, -1, BLOCK, -1)
        x = (level + 0.1 * torch.randn(4, 8, BLOCK, 8)).flatten(1, 2)
        mixer.start_step(step)
        loss = F.mse_loss(mixer(x)[:, 3 * BLOCK :], level.flatten(1, 2)[:, : -3 * BLOCK])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (mixer.eval()._best() == 3).all(), mixer.logits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "soft"}, "estimator='soft': expected one of straight_through, gumbel"),
        ({"top_k": 0}, "top_k=0 of reach=5"),
        ({"top_k": 5}, "top_k=5 of reach=5: expected 1 to reach - 1"),
        ({"global_blocks": -1}, "global_blocks=-1"),
        ({"temperature": 0.0}, r"temperature=0\.0"),
        ({"block": 7}, "block=7: expected one of 16, 32, 64, 128"),
    ],
)
def test_numbers_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
