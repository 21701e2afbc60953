"""Windows blended with linear attention: all pairs by the formulas, both extremes, and that each key counts once."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo.mixers.window_linear as module
from tests.mixers.blend_oracle import assert_same, build, draw, kernel, oracle, read, stepped, window_rule
from zoo.mixers.parts.costs import CHUNK
from zoo.mixers.parts.head_maps import HeadMap

CASES = [
    {"mode": mode, "feature_map": feature_map}
    for mode, maps in {
        "heads": ("elu+1", "taylor", "hedgehog"),
        "gate": ("elu+1", "taylor", "hedgehog"),
        "shared": ("taylor", "hedgehog"),
    }.items()
    for feature_map in maps
]
SHARED = [case for case in CASES if case["mode"] == "shared"]


def naive(mixer, x, case, window):
    return oracle(mixer, x, near=window_rule(x.shape[1], window)[None], **case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case.values()))
@pytest.mark.parametrize("window", [1, 7, 64, 100])
def test_equals_the_weights_of_all_pairs(case, window):
    mixer, x = build("window_linear", rope_theta=None, window=window, **case), draw(2, 90, 32).requires_grad_()
    y, want, leaves = mixer(x), naive(mixer, x, case, window), [x, *mixer.parameters()]
    assert_same(y, want)
    weight = draw(*y.shape)
    for ours, theirs in zip(*(torch.autograd.grad((o * weight).sum(), leaves) for o in (y, want))):
        assert_same(ours, theirs, 1e-9)
    assert_same(stepped(mixer, x, [1, 40, 1, 1, 47]), want)


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case["feature_map"])
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "gate": "sigmoid"}, {"rope_theta": None}], ids=str)
@pytest.mark.parametrize("window", [70, 71, 1000])
def test_a_window_over_everything_is_softmax(case, options, window):
    mixer, softmax = build("window_linear", window=window, **case, **options), build("softmax", **options)
    softmax.load_state_dict({k: v for k, v in mixer.state_dict().items() if not k.startswith("parts.")})
    x = draw(2, 70, 32).requires_grad_()
    y = mixer(x)
    assert_same(y, softmax(x), 1e-12)
    grads = torch.autograd.grad(y.square().sum(), list(mixer.parts.parameters()))
    assert not any(grad.any() for grad in grads)  # zeros, and neither NaN nor None
    assert not torch.allclose(mixer(draw(1, window + 1, 32)), softmax(draw(1, window + 1, 32)))


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case["feature_map"])
def test_a_window_of_nothing_is_linear_attention(case):
    shared = build("window_linear", window=0, **case)
    linear = build("window_linear", mode="heads", local_heads=0, feature_map=case["feature_map"])
    linear.load_state_dict(shared.state_dict())
    x = draw(2, 70, 32)
    assert_same(shared(x), linear(x))
    shared.rope_theta = None
    assert_same(shared(x), naive(shared, x, case, 0))


def test_all_heads_windowed_are_window_attention():
    mixer, window = build("window_linear", local_heads=4, window=9), build("window", window=9, sink_tokens=0)
    window.load_state_dict(mixer.state_dict())
    x = draw(2, 70, 32)
    assert_same(mixer(x), window(x), 1e-12)
    assert_same(stepped(mixer, x, [30, 1, 39]), mixer(x))


def test_the_first_heads_read_the_window_and_the_others_everything():
    mixer, x = build("window_linear", window=9, local_heads=3), draw(1, 60, 32)
    mixer.out = torch.nn.Identity()
    changed = x.clone()
    changed[:, 50 - 9] += 10
    moved = (mixer(changed) - mixer(x))[0, 50].view(4, 8).any(-1)
    assert moved.tolist() == [False, False, False, True]
    changed[:, 50 - 8] += 10
    assert (mixer(changed) - mixer(x))[0, 50].view(4, 8).any(-1).all()


def test_a_gated_sum_is_the_sum_of_its_parts():
    """Gates that are shut or open let nothing or all of a part through; between, each head has shares of its own."""
    mixer, x = build("window_linear", mode="gate", window=9), draw(2, 70, 32)
    x[..., 0] = 1
    window, linear = (build("window_linear", local_heads=n, window=9) for n in (4, 0))
    for part in (window, linear):
        part.load_state_dict(mixer.state_dict(), strict=False)
    outputs = []
    for near, far in ((100, -100), (-100, 100), (0, 0), (100, 100)):
        with torch.no_grad():
            mixer.shares.weight.zero_()
            mixer.shares.weight[:4, 0], mixer.shares.weight[4:, 0] = near, far
        outputs.append(mixer(x))
    assert_same(outputs[0], window(x))
    assert_same(outputs[1], linear(x))
    assert_same(outputs[2], (window(x) + linear(x)) / 2)
    assert_same(outputs[3], window(x) + linear(x))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case.values()))
def test_constant_values_give_constant_outputs(case):
    mixer, x = build("window_linear", window=10, **case), draw(2, 70, 32)
    x[..., 0] = 1
    with torch.no_grad():
        mixer.value.weight[:, 1:] = 0
    want = mixer.out(mixer.value(x))
    if case["mode"] == "gate":
        both = torch.sigmoid(mixer.shares(x)).unflatten(-1, (2, 4)).sum(2)
        want = mixer.out((mixer.value(x).unflatten(-1, (4, 8)) * both[..., None]).flatten(-2))
    assert_same(mixer(x), want, 1e-9)


def quadratic(q, k, v, *, window=None, documents=None):
    """In place of softmax attention with its sums: the kernel of taylor, so that both sets of keys weigh alike."""
    length = k.shape[1]
    near = window_rule(length, length if window is None else window)
    if documents is not None:
        near = near & (documents[:, :, None] == documents[:, None])[:, None]
    u = torch.einsum("bthd,bjhd->bhtj", q, k) / q.shape[-1] ** 0.5
    weights = ((1 + u + u**2 / 2) * near[..., -q.shape[1] :, :])[..., -q.shape[1] :, :]
    return torch.cat([read(weights, v), weights.sum(-1).log().transpose(1, 2)[..., None]], -1)


def full(q, k, v, **how):
    """The queries are the last."""
    front = q.new_zeros(len(q), k.shape[1] - q.shape[1], *q.shape[2:])
    return quadratic(torch.cat([front, q], 1), k, v, **how)[:, k.shape[1] - q.shape[1] :]


@pytest.fixture
def same_kernel_on_both_sides(monkeypatch):
    def step(self, q, view):
        """In any order of the slots; what a row has not filled yet comes last, and first when turned around."""
        filled = (torch.arange(view.keys.shape[1]) < view.lengths[:, None]).long()
        return full(q[:, None], view.keys.flip(1), view.values.flip(1), documents=filled.flip(1))[:, 0]

    monkeypatch.setattr(module, "_with_sums", full)
    monkeypatch.setattr(module.SharedPart, "_step_with_sums", step)


@pytest.mark.usefixtures("same_kernel_on_both_sides")
@pytest.mark.parametrize(
    "pieces", [None, [80], [1] * 80, [30, 1, 1, 9, 39]], ids=["whole", "prefill", "tokens", "pieces"]
)
def test_with_one_kernel_on_both_sides_the_window_does_not_matter(pieces):
    """The lag identity: every past key is counted once, whether in the window or in the state, and none twice."""
    results = []
    for window in (0, 1, 5, 16, 79, 80, 200):
        torch.manual_seed(1)
        mixer, x = build("window_linear", mode="shared", window=window, features=8), draw(2, 80, 32)
        for parameter in mixer.parts.parameters():
            parameter.data = torch.eye(8).double().repeat(4, 1, 1)
        results.append(mixer(x) if pieces is None else stepped(mixer, x, pieces))
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.usefixtures("same_kernel_on_both_sides")
def test_the_lag_identity_holds_in_each_packed_document():
    documents, results = torch.tensor([[3] * 30 + [1] + [0] * 20 + [7] * 29]), []
    for window in (0, 1, 5, 16, 200):
        torch.manual_seed(1)
        mixer, x = build("window_linear", mode="shared", window=window, features=8), draw(1, 80, 32)
        for parameter in mixer.parts.parameters():
            parameter.data = torch.eye(8).double().repeat(4, 1, 1)
        results.append(mixer(x, documents=documents))
    for result in results[1:]:
        assert_same(result, results[0])


def test_the_naive_formula_itself_has_the_lag_identity():
    q, k, v = draw(3, 1, 30, 4, 8)
    weights, causal = kernel("elu+1", q, k), window_rule(30, 30)
    for window in (0, 4, 30):
        near = window_rule(30, window)
        torch.testing.assert_close(read(weights * near + weights * (causal & ~near), v), read(weights * causal, v))


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_cache_is_a_ring_and_a_state(dtype, heads):
    wide = max(dtype.itemsize, 4)
    ring, per_head = 2 * 16 * 32 * dtype.itemsize, (32 // heads) + 1
    for options, state in (
        ({"mode": "shared"}, heads * 153 * per_head * wide),
        ({"mode": "shared", "feature_map": "hedgehog", "features": 3}, heads * 6 * per_head * wide),
        ({"mode": "gate"}, 32 * per_head * wide),
    ):
        mixer = build("window_linear", window=16, heads=heads, **options)
        assert mixer.cost(10**6, dtype).cache_bytes == mixer.cost(16, dtype).cache_bytes == ring + state
        assert mixer.cost(8, dtype).cache_bytes == ring // 2 + state
    half = build("window_linear", window=16).cost(100, dtype)
    assert half.cache_bytes == 16 * 32 * dtype.itemsize + 2 * 8 * 9 * wide


@pytest.mark.parametrize("context", [1, 20, 64, 192])
@pytest.mark.parametrize("options", [{}, {"mode": "gate", "feature_map": "hedgehog"}, {"mode": "shared"}], ids=str)
def test_training_flops_are_the_counted_products_less_the_upper_halves_of_chunks(context, options):
    mixer = build("window_linear", window=30, **options)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mixer(draw(1, context, 32))
    chunk, part = min(context, CHUNK), mixer.parts[-1]
    masked_pairs = chunk * (chunk - 1) // 2 * (context // chunk)
    upper = 2 * masked_pairs * part.heads * (part.map.width + 9)
    assert mixer.cost(context).flops_per_token * context == counter.get_total_flops() - upper


@pytest.mark.parametrize("feature_map", ["taylor", "hedgehog"])
def test_outliers_stay_finite_in_fp32(feature_map):
    mixer = build("window_linear", mode="shared", window=5, feature_map=feature_map).float()
    for size in (0, 1e-6, 1e3):
        x = (size * torch.randn(2, 70, 32)).requires_grad_()
        y = mixer(x)
        grads = torch.autograd.grad(y.square().mean(), [x, *mixer.parameters()])
        assert all(torch.isfinite(t).all() for t in (y, *grads))
        assert y.abs().max() <= mixer.value(x).abs().max() * mixer.out.weight.abs().sum(1).max() * 1.01


@pytest.mark.slow
def test_shared_and_gated_compile_in_one_graph():
    documents = torch.arange(70)[None] // 40
    for options in ({"mode": "shared"}, {"mode": "gate"}):
        mixer, x = build("window_linear", window=9, **options), draw(1, 70, 32)
        compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True, dynamic=False)
        assert_same(compiled(x, documents=documents), mixer(x, documents=documents), 1e-12)


@pytest.mark.parametrize("width", [4, 8, 16])
@pytest.mark.parametrize("features", [16, 20])
def test_taylor_with_features_enough_starts_as_the_series_of_exp(width, features):
    head_map, (q, k) = HeadMap("taylor", 2, width, features).double(), draw(2, 1, 9, 2, width)
    u = torch.einsum("bthd,bjhd->bhtj", q, k) / width**0.5
    got = torch.einsum("bthd,bjhd->bhtj", head_map.query(q), head_map.key(k))
    torch.testing.assert_close(got, 1 + u + u**2 / 2, rtol=1e-6, atol=1e-6)  # the matrices are drawn in fp32
    assert head_map.width == head_map.query(q).shape[-1]


@pytest.mark.parametrize(("name", "features"), [("taylor", 4), ("hedgehog", 4), ("hedgehog", 8), ("hedgehog", 16)])
def test_learned_maps_start_as_exp_to_first_order_on_average(name, features):
    head_map, (q, k) = HeadMap(name, 4000, 8, features).double(), 0.1 * draw(2, 1, 3, 1, 8)
    q, k = (x.expand(-1, -1, 4000, -1) for x in (q, k))
    got = torch.einsum("bthd,bjhd->bhtj", head_map.query(q), head_map.key(k)).mean(1)
    u = torch.einsum("btd,bjd->btj", q[:, :, 0], k[:, :, 0]) / math.sqrt(8)
    torch.testing.assert_close(got, 1 + u, rtol=0, atol=1e-3)
    assert u.abs().max() > 0.01


def test_products_of_features_are_positive():
    for name, floor in (("taylor", 0.5), ("hedgehog", 0.0), ("elu+1", 0.0)):
        head_map, (q, k) = HeadMap(name, 2, 8).double(), 5 * draw(2, 1, 50, 2, 8)
        products = torch.einsum("bthd,bjhd->bhtj", head_map.query(q), head_map.key(k))
        assert products.min() > floor - 1e-9
        assert head_map.floor >= floor


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "mode='both': expected one of heads, gate, shared"),
        ({"window": 0}, "window=0: expected at least 1"),
        ({"mode": "shared", "window": -1}, "window=-1: expected at least 0"),
        ({"mode": "shared", "feature_map": "elu+1"}, r"feature_map='elu\+1': expected one of taylor, hedgehog"),
        ({"mode": "shared", "feature_map": "exp"}, r"feature_map='exp': expected one of elu\+1, taylor, hedgehog"),
        ({"features": 4}, "features=4 with feature_map='elu"),
        ({"feature_map": "taylor", "features": 0}, "features=0: expected at least 1"),
        ({"local_heads": 5}, "local_heads=5: expected 0 to heads=4"),
        ({"mode": "gate", "local_heads": 2}, "local_heads=2 with mode='gate'"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("window_linear", **options)
