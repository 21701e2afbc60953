"""Dilated attention: exactly the keys of its kind and rate, at a cost that goes with their number."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.tiers import in_ci
from zoo.mixers.parts.dilation import Dilation

KINDS = [
    {"kind": "window", "window": 3, "dilation": [1, 4]},
    {"kind": "window", "window": 4, "dilation": [3, 1, 5], "kv_heads": 4},
    {"kind": "window", "window": 2, "dilation": [1, 6], "kv_heads": 2},
    {"kind": "atrous", "dilation": [1, 4]},
    {"kind": "atrous", "dilation": [1, 3], "kv_heads": 2},
    {"kind": "strided", "dilation": 6},
    {"kind": "strided", "dilation": [1, 2, 7], "kv_heads": 4},
    {"kind": "strided", "dilation": [4, 5], "kv_heads": 2},
    {"kind": "strided", "dilation": 100, "kv_heads": 1},
    {"kind": "window", "window": 3, "dilation": [1, 4], "kv_heads": 1},
    {"kind": "window", "window": 2, "dilation": [5, 1, 3], "kv_heads": 1},
    {"kind": "strided", "dilation": [3, 1, 7, 2], "kv_heads": 1},
]
FEW = (1, 2, 4, 7, 10)  # each kind, with as many key heads as heads, fewer, and one
REST = [options for i, options in enumerate(KINDS) if i not in FEW]
every_kind = pytest.mark.parametrize("options", [*(KINDS[i] for i in FEW), *in_ci(*REST)], ids=str)


def build(name="dilated", **options):
    torch.manual_seed(0)
    return zoo.mixers.build(name, **{"width": 32, "heads": 4} | options).double()


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def seen(length, options):
    """``(H, T, T)``: True where the query reads the key."""
    t, groups = torch.arange(length), options.get("kv_heads") or 4
    distance = t[:, None] - t
    rates = options["dilation"] if isinstance(options["dilation"], list) else [options["dilation"]]
    masks = []
    for head in range(4):
        fold = 4 // groups
        rate = rates[(head // fold if len(rates) <= groups else head % fold) % len(rates)]
        mask = distance % rate == 0
        if options["kind"] == "window":
            mask = mask & (distance < rate * options["window"])
        if options["kind"] == "strided":
            mask = mask | (distance < rate)
        masks.append(mask & (distance >= 0))
    return torch.stack(masks)


def dense(mixer, x, mask):
    """The mixer without positions, by a mask ``(H, T, T)`` over all pairs."""
    q, k, v = (m(x).unflatten(-1, (-1, 8)) for m in (mixer.query, mixer.key, mixer.value))
    k, v = (y.repeat_interleave(4 // y.shape[2], 2) for y in (k, v))
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) / 8**0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return mixer.out(torch.einsum("bhtj,bjhd->bthd", weights, v).flatten(2))


def assert_same(got, want, leaves, tolerance=1e-11):
    """Values and gradients."""
    weight = torch.randn_like(want)
    grads = [torch.autograd.grad((y * weight).sum(), leaves) for y in (got, want)]
    for ours, theirs in zip((got, *grads[0]), (want, *grads[1])):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@every_kind
@pytest.mark.parametrize("length", [1, 2, 11, 12, 61])
def test_equals_a_dense_mask(options, length):
    mixer, x = build(rope_theta=None, **options), draw(2, length, 32).requires_grad_()
    assert_same(mixer(x), dense(mixer, x, seen(length, options)), [x, *mixer.parameters()])


@every_kind
def test_equals_a_dense_mask_inside_documents(options):
    """Documents shorter than a rate, of one token, and with as many tokens as a rate among them."""
    lengths = [[1, 2, 29, 6, 6, 17], [61], [5] * 12 + [1]]
    ids = torch.stack([torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in lengths])
    mixer, x = build(rope_theta=None, **options), draw(3, 61, 32).requires_grad_()
    mask = seen(61, options) & (ids[:, None, :, None] == ids[:, None, None])
    assert_same(mixer(x, documents=ids), dense(mixer, x, mask), [x, *mixer.parameters()])


@every_kind
@pytest.mark.parametrize("hidden", [None, 7])
def test_the_last_queries_alone_get_the_same(options, hidden):
    """Also where the keys before the row are told apart as a document, as a cache of uneven rows does."""
    mixer = build(**options)
    q, k, v = draw(2, 61, 4, 8), *(draw(2, 61, mixer.kv_heads, 8) for _ in range(2))
    documents = None if hidden is None else (torch.arange(61) >= hidden).long().expand(2, 61)
    want = mixer._whole(q, k, v, documents=documents)
    for asked in (1, 2, 5, 12, 30, 60, 61):
        got = mixer._whole(q[:, -asked:], k, v, documents=documents)
        torch.testing.assert_close(got, want[:, -asked:], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [3, 50])
@pytest.mark.parametrize("options", [{}, {"kv_heads": 2, "qk_norm": True, "gate": "linear"}], ids=str)
def test_a_rate_of_one_is_a_window(window, options):
    mixer, x = build(dilation=1, window=window, **options), draw(2, 40, 32)
    plain = build("window", window=window, sink_tokens=0, **options)
    plain.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x), plain(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 40, "dilation": 1},
        {"kind": "atrous", "dilation": 1},
        {"kind": "strided", "dilation": 1},
        {"kind": "strided", "dilation": 40},
        {"kind": "strided"},
    ],
    ids=str,
)
def test_enough_keys_are_all_keys(options):
    mixer, x, softmax = build(**options), draw(2, 40, 32), build("softmax")
    softmax.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x), softmax(x), rtol=1e-12, atol=1e-12)


def test_the_default_rates():
    assert [d.rate for d in build().dilations] == [1, 4]
    assert [d.rate for d in build(kind="atrous", kv_heads=1).dilations] == [1, 4]
    assert [(d.rate, d.near) for d in build(kind="strided").dilations] == [(128, 128)]


def test_no_rate_is_left_out_without_a_word(caplog):
    for kv_heads in (1, 2, 4):
        assert [d.rate for d in build(kv_heads=kv_heads).dilations] == [1, 4]
    assert [d.rate for d in build(heads=1, dilation=1).dilations] == [1]
    assert not caplog.records
    assert [d.rate for d in build(heads=1).dilations] == [1]
    assert "dilation=[1, 4]: heads=1 with kv_heads=1 take 1 rates in turn, and [4] are not used" in caplog.text


def test_query_heads_of_other_rates_read_keys_of_their_own():
    apart, alike = (build(window=8, dilation=rates, kv_heads=1) for rates in ([1, 4], 1))
    assert apart.step_bytes(100, torch.float32) == 4 * 8 * 2 * 8 * 4  # heads * window * (key and value) * width * size
    assert alike.step_bytes(100, torch.float32) == 8 * 2 * 8 * 4


@pytest.mark.slow
@pytest.mark.parametrize("options", [KINDS[2], KINDS[3], KINDS[6]], ids=str)
def test_every_kind_compiles_in_one_graph(options):
    mixer, x = build(**options), draw(2, 61, 32).requires_grad_()
    torch._dynamo.reset()  # graphs that other mixers left count against a limit
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True, dynamic=False)
    for documents in (None, (torch.arange(61) // 25).expand(2, 61)):
        assert_same(compiled(x, documents=documents), mixer(x, documents=documents), [x], 1e-12)


def influence(f, length):
    """``(T, T)``: whether an input can change an output at all."""
    x = draw(1, length, 32).requires_grad_()
    y = f(x)
    rows = [torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)[0][0].any(-1) for t in range(length)]
    return torch.stack(rows)


@every_kind
def test_no_other_token_has_an_influence(options):
    assert torch.equal(influence(build(**options), 61), seen(61, options).any(0))


@pytest.mark.parametrize(
    "options",
    [{"window": 3, "dilation": [1, 4]}, {"kind": "strided", "dilation": 5}, {"window": 2, "dilation": [3, 1]}],
    ids=str,
)
@pytest.mark.parametrize("layers", [3, *in_ci(1, 2)])
def test_layers_reach_the_sums_of_their_distances(options, layers):
    stack = [build(depth=3, layer=i, **options) for i in range(layers)]

    def forward(x):
        for mixer in stack:
            x = x + mixer(x)
        return x

    once = seen(40, {"kind": "window"} | options).any(0).double()
    assert torch.equal(influence(forward, 40), torch.linalg.matrix_power(once, layers) > 0)


@every_kind
@pytest.mark.parametrize("prefill", [7, *in_ci(1, 30)])
def test_decoding_gives_the_same_far_past_the_windows(options, prefill):
    mixer, x = build(**options), draw(2, 100, 32)
    with torch.no_grad():
        cache = mixer.new_cache(2, dtype=torch.float64)
        pieces = x.split([prefill] + [1] * (100 - prefill), 1)
        got = torch.cat([mixer(piece, cache=cache) for piece in pieces], 1)
        torch.testing.assert_close(got, mixer(x), rtol=1e-11, atol=1e-11)
    if options["kind"] == "window":
        assert cache.keys.shape[1] == (options["window"] - 1) * max(options["dilation"]) + 1


@every_kind
@pytest.mark.parametrize("context", [1, 4, 12, 61, 200])
def test_the_cost_is_that_of_the_pairs(options, context):
    mixer, mask = build(**options), seen(context + 1, options)
    weights = 2 * sum(p.numel() for p in mixer.parameters())
    cost = mixer.cost(context)
    pairs = int(mask[:, :-1, :-1].sum())
    assert cost.flops_per_token * context == pytest.approx(weights * context + 4 * 8 * pairs, rel=1e-12)
    assert cost.decode_flops_per_token == weights + 4 * 8 * int(mask[:, -1].sum())


def counted(mixer, length):
    """FLOPs of mixing, forward and backward, per token."""
    x = draw(1, length, 32).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        mixer(x).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    names = ("softmax_attention", "softmax_attention_backward")
    return [sum(n for op, n in counts.items() if str(op).split(".")[1] == name) / length for name in names]


def test_the_work_goes_with_the_window_and_not_with_the_length():
    for length in (1024, 2048):
        for window in (8, 16):
            forward, backward = counted(build(window=window, dilation=[1, 4]), length)
            assert 0.9 * 4 * 32 * window < forward <= 4 * 32 * window
            assert backward == 2.5 * forward


def test_a_stride_of_the_root_of_the_length_costs_so_much():
    forward, _ = counted(build(kind="strided", dilation=32), 1024)
    assert 4 * 32 * 32 < forward < 1.6 * 4 * 32 * 32


def test_a_step_touches_no_more_keys_than_it_reads(monkeypatch):
    import zoo.mixers.parts.dilation as module

    mixer, x, touched = build(window=5, dilation=[1, 4]), draw(1, 101, 32), []
    step = module.softmax_attention_step
    monkeypatch.setattr(
        module, "softmax_attention_step", lambda q, k, v, n: (touched.append(tuple(k.shape)), step(q, k, v, n))[1]
    )
    with torch.no_grad():
        cache = mixer.new_cache(1, dtype=torch.float64)
        mixer(x[:, :-1], cache=cache)
        mixer(x[:, -1:], cache=cache)
    assert touched == [(1, 5, 2, 8)] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dilation": 4}, "dilation=4 gives 4 heads rates over 1.*Mix in a rate of 1"),
        ({"dilation": [2, 3]}, r"dilation=\[2, 3\] gives 4 heads rates over 1"),
        ({"dilation": [2, 1], "heads": 1}, "gives 1 heads rates over 1"),
        ({"kind": "atrous", "dilation": 3}, "kind='atrous' no layer would ever reach"),
        ({"dilation": 0}, "dilation=0: expected a rate of at least 1"),
        ({"dilation": []}, r"dilation=\[\]: expected a rate"),
        ({"kind": "fixed"}, "kind='fixed': expected one of window, atrous, strided"),
        ({"window": 0}, "window=0: expected at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("options", [{"rate": 0}, {"rate": 2, "taps": 0}, {"rate": 4, "near": 2}])
def test_a_dilation_that_does_not_exist_is_refused(options):
    with pytest.raises(ValueError, match="expected"):
        Dilation(**options)
