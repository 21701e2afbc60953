"""Merging heads: what is exact, what is nearest, and that the factors pass through the mixer."""

import math

import pytest
import torch

from zoo.conversion.head_merging import Layout, Merged, merge_heads, relative_error, share_heads
from zoo.mixers.gqa import GroupedQueryAttention
from zoo.mixers.softmax import SoftmaxAttention

HEADS, KV, WIDTH, INPUTS = 8, 2, 6, 48
STRUCTURES = [{}, {"rotated": WIDTH}, {"rotated": 4}, {"channelwise": True}]


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random_moments(rank=INPUTS):
    x = torch.randn(rank, INPUTS) * torch.logspace(0, -2, INPUTS)
    return x.mT @ x / rank


def random_factors(groups_of, rotated=0, channelwise=False):
    """Factors ``(r, D, D)`` of the structure that may be absorbed."""
    factors = torch.zeros(groups_of, WIDTH, WIDTH)
    for i in range(groups_of):
        for pair in range(0, rotated, 2):
            a, b = torch.randn(2)
            factors[i, pair : pair + 2, pair : pair + 2] = torch.stack([torch.stack([a, -b]), torch.stack([b, a])])
        rest = torch.randn(WIDTH - rotated, WIDTH - rotated)
        factors[i, rotated:, rotated:] = rest.diag().diag() if channelwise else rest
    return factors


def turn(angle, rotated):
    """The rotation ``(D, D)`` of a token at a position, written from the definition of rotary positions."""
    matrix = torch.eye(WIDTH)
    for pair in range(0, rotated, 2):
        c, s = math.cos(angle / (1 + pair)), math.sin(angle / (1 + pair))
        matrix[pair : pair + 2, pair : pair + 2] = torch.tensor([[c, -s], [s, c]])
    return matrix


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_mean_and_first_are_the_naive_loop(groups):
    weight = torch.randn(HEADS, WIDTH, INPUTS)
    size = HEADS // groups
    for g in range(groups):
        heads = [weight[i] for i in range(g * size, (g + 1) * size)]
        torch.testing.assert_close(merge_heads(weight, groups, "mean").shared[g], sum(heads) / size)
        assert torch.equal(merge_heads(weight, groups, "first").shared[g], heads[0])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_svd_is_no_worse_than_mean_and_mean_no_worse_than_first(structure, moments, groups):
    weight, covariance = torch.randn(HEADS, WIDTH, INPUTS), random_moments() if moments else None
    error = {
        method: relative_error(
            weight, merge_heads(weight, groups, method, covariance=covariance, **structure).heads(), covariance
        )
        for method in ("svd", "mean", "first")
    }
    assert 0 < error["svd"] < 0.99 * error["mean"] < 0.99 * error["first"]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_each_metric_is_best_minimized_by_itself(structure):
    weight, covariance = torch.randn(HEADS, WIDTH, INPUTS), random_moments()
    plain, white = (merge_heads(weight, KV, "svd", covariance=c, **structure).heads() for c in (None, covariance))
    assert relative_error(weight, plain) < relative_error(weight, white)
    assert relative_error(weight, white, covariance) < relative_error(weight, plain, covariance)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_svd_is_a_minimum(structure):
    weight, covariance = torch.randn(HEADS, WIDTH, INPUTS), random_moments()
    best = merge_heads(weight, KV, "svd", covariance=covariance, **structure)
    least = relative_error(weight, best.heads(), covariance)
    for _ in range(20):
        away = torch.cat([random_factors(HEADS // KV, **structure) for _ in range(KV)])
        shared = best.shared + 1e-2 * torch.randn_like(best.shared)
        near = Merged(shared, best.factors + 1e-2 * away)
        assert relative_error(weight, near.heads(), covariance) > least


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rank", [None, INPUTS, 20])
def test_heads_that_differ_by_factors_of_the_structure_are_exact(structure, rank):
    factors = torch.cat([random_factors(HEADS // KV, **structure) for _ in range(KV)])
    weight = factors @ torch.randn(KV, WIDTH, INPUTS).repeat_interleave(HEADS // KV, 0)
    covariance = None if rank is None else random_moments(rank)
    merged = merge_heads(weight, KV, "svd", covariance=covariance, **structure)
    torch.testing.assert_close(merged.heads(), weight, rtol=0, atol=1e-10)
    assert relative_error(weight, merge_heads(weight, KV, "mean").heads()) > 0.5


@pytest.mark.parametrize("structure", STRUCTURES)
def test_equal_heads_are_kept_with_the_identity(structure):
    one = torch.randn(KV, WIDTH, INPUTS)
    merged = merge_heads(one.repeat_interleave(HEADS // KV, 0), KV, "svd", **structure)
    torch.testing.assert_close(merged.shared, one)
    torch.testing.assert_close(merged.factors, torch.eye(WIDTH).expand(HEADS, -1, -1))


@pytest.mark.parametrize("rotated", [WIDTH, 4])
def test_factors_of_keys_commute_with_every_rotation(rotated):
    factors = merge_heads(torch.randn(HEADS, WIDTH, INPUTS), KV, "svd", rotated=rotated).factors
    for angle in (0.3, 1.7, 40.0):
        rotation = turn(angle, rotated)
        torch.testing.assert_close(factors @ rotation, rotation @ factors)
    plain = merge_heads(torch.randn(HEADS, WIDTH, INPUTS), KV, "svd").factors
    assert not torch.allclose(plain @ turn(1.7, rotated), turn(1.7, rotated) @ plain)


def test_factors_of_gated_values_are_diagonal():
    factors = merge_heads(torch.randn(HEADS, WIDTH, INPUTS), KV, "svd", channelwise=True).factors
    assert torch.equal(factors, factors.diagonal(dim1=1, dim2=2).diag_embed())


def test_zero_heads_give_zero_heads():
    for structure in STRUCTURES:
        assert not merge_heads(torch.zeros(HEADS, WIDTH, INPUTS), KV, "svd", **structure).heads().any()


@pytest.mark.parametrize(
    ("options", "target"),
    [
        ({}, 2),
        ({}, 1),
        ({"rope_theta": None}, 2),
        ({"rope_fraction": 0.5}, 2),
        ({"gate": "silu"}, 2),
        ({"gate": "linear", "sink_logits": True, "rope_fraction": 0.5}, 1),
        ({"kv_heads": 4}, 2),
    ],
)
@pytest.mark.parametrize("method", ["svd", "mean"])
def test_a_layer_with_few_heads_is_the_layer_whose_heads_were_rebuilt(options, target, method):
    """The factors in W_q and W_o do what the factors on keys and values would."""
    old = SoftmaxAttention(64, 8, **options)
    if old.sink_logits is not None:
        torch.nn.init.normal_(old.sink_logits)
    layout = Layout(8, old.kv_heads, old.rotated, gated=old.gate is not None)
    state = old.state_dict()
    weights, errors = share_heads(state, layout, target, method)
    new = GroupedQueryAttention(64, 8, **{**options, "kv_heads": target})
    new.load_state_dict(weights)
    rebuilt = SoftmaxAttention(64, 8, **options)
    rebuilt.load_state_dict(state)
    for name in ("key", "value"):
        heads = state[f"{name}.weight"].unflatten(0, (old.kv_heads, -1))
        structure = {"rotated": old.rotated} if name == "key" else {"channelwise": old.gate is not None}
        merged = merge_heads(heads, target, method, **structure).heads()
        getattr(rebuilt, name).weight.data.copy_(merged.flatten(0, 1))
        assert getattr(errors, f"{name}s") == pytest.approx(float((merged - heads).norm() / heads.norm()))
    x = torch.randn(2, 20, 64)
    torch.testing.assert_close(new(x), rebuilt(x), rtol=0, atol=1e-10)
    assert not torch.allclose(new(x), old(x), atol=1e-3)


def test_errors_of_scores_and_outputs_are_those_of_random_inputs():
    old = SoftmaxAttention(64, 8)
    covariance = torch.diag(torch.linspace(0.1, 2, 64))
    state = old.state_dict()
    weights, errors = share_heads(state, Layout(8, 8, 8), 2, "svd", covariance)
    x, y = torch.randn(2, 40_000, 64) * covariance.diagonal().sqrt()
    scores, outputs = [], []
    for w, repeat in ((state, 1), (weights, 4)):
        q, k, v = (
            (z @ w[f"{n}.weight"].mT).unflatten(-1, (-1, 8)) for z, n in ((x, "query"), (y, "key"), (y, "value"))
        )
        scores.append((q * k.repeat_interleave(repeat, 1)).sum(-1))
        out = w["out.weight"].unflatten(1, (8, -1))
        outputs.append(torch.einsum("thd,chd->thc", v.repeat_interleave(repeat, 1), out))
    assert errors.scores == pytest.approx(float((scores[0] - scores[1]).norm() / scores[0].norm()), rel=0.03)
    assert errors.outputs == pytest.approx(float((outputs[0] - outputs[1]).norm() / outputs[0].norm()), rel=0.03)


def test_what_cannot_be_merged_says_so():
    weight = torch.randn(HEADS, WIDTH, INPUTS)
    with pytest.raises(ValueError, match="8 heads cannot be merged into 3 groups"):
        merge_heads(weight, 3, "mean")
    with pytest.raises(ValueError, match="'best': expected one of mean, first, svd"):
        merge_heads(weight, 2, "best")
    with pytest.raises(ValueError, match=r"qk_norm=true.*method=mean"):
        share_heads(SoftmaxAttention(64, 8, qk_norm=True).state_dict(), Layout(8, 8, 8, normed=True), 2, "svd")
