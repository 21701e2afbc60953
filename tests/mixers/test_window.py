"""Window attention: which tokens have an influence, and that a ring of w + s slots is enough."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.tiers import in_ci


def build(name="window", **options):
    torch.manual_seed(0)
    return zoo.mixers.build(name, **{"width": 32, "heads": 4} | options).double()


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def seen(length, window, sink_tokens):
    """``(T, T)``: True where the query reads the key."""
    t = torch.arange(length)
    distance = t[:, None] - t
    return (distance >= 0) & ((distance < window) | (t < sink_tokens))


def influence(f, length):
    """``(T, T)``: whether an input can change an output at all."""
    x = draw(1, length, 32).requires_grad_()
    y = f(x)
    rows = [torch.autograd.grad(y[0, t].square().sum(), x, retain_graph=True)[0][0].any(-1) for t in range(length)]
    return torch.stack(rows)


@pytest.mark.parametrize("options", [{}, {"kv_heads": 2, "qk_norm": True, "gate": "sigmoid"}], ids=str)
@pytest.mark.parametrize("sink_tokens", [0, 4])
@pytest.mark.parametrize("window", [40, 41, 1000])
def test_a_window_over_everything_is_softmax(window, sink_tokens, options):
    mixer, softmax = build(window=window, sink_tokens=sink_tokens, **options), build("softmax", **options)
    x = draw(2, 40, 32)
    softmax.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x), softmax(x), rtol=1e-12, atol=1e-12)


def test_a_window_of_one_gives_the_values():
    mixer, x = build(window=1, sink_tokens=0), draw(2, 40, 32)
    torch.testing.assert_close(mixer(x), mixer.out(mixer.value(x)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [50, *in_ci(200)])
@pytest.mark.parametrize(("window", "sink_tokens"), [(1, 0), (2, 0), (7, 0), (7, 2), (1, 3), (16, 1), (33, 40)])
def test_exactly_the_window_and_the_sinks_have_an_influence(window, sink_tokens, length):
    mixer = build(window=window, sink_tokens=sink_tokens)
    assert torch.equal(influence(mixer, length), seen(length, window, sink_tokens))


def test_the_last_token_of_the_window_counts_and_the_one_before_does_not():
    mixer, x, t = build(window=9, sink_tokens=2), draw(1, 60, 32), 50
    for source, changes in ((t - 9, False), (t - 8, True), (0, True), (1, True), (2, False)):
        changed = x.clone()
        changed[:, source] += 100
        assert torch.equal(mixer(changed)[:, t], mixer(x)[:, t]) != changes


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("window", [2, 5])
def test_layers_see_their_number_times_the_window_less_one_and_themselves(window, layers):
    stack = [build(window=window, sink_tokens=0, depth=4, layer=i) for i in range(layers)]

    def forward(x):
        for mixer in stack:
            x = x + mixer(x)
        return x

    assert torch.equal(influence(forward, 40), seen(40, layers * (window - 1) + 1, 0))


@pytest.mark.parametrize("logit", [False, True])
@pytest.mark.parametrize("sink_tokens", [0, 3])
def test_equals_a_dense_mask(sink_tokens, logit):
    mixer, x = build(window=6, sink_tokens=sink_tokens, kv_heads=2, rope_theta=None, sink_logits=logit), draw(2, 50, 32)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(std=0.5)
    q, k, v = (m(x).unflatten(-1, (-1, 8)) for m in (mixer.query, mixer.key, mixer.value))
    k, v = (y.repeat_interleave(2, 2) for y in (k, v))
    scores = torch.einsum("bthd,bjhd->bhtj", q, k) / 8**0.5
    scores = scores.masked_fill(~seen(50, 6, sink_tokens), -torch.inf)
    if logit:
        scores = torch.cat([scores, mixer.sink_logits[:, None, None].expand(2, 4, 50, 1)], -1)
    weights = scores.softmax(-1)[..., :50]
    want = mixer.out(torch.einsum("bhtj,bjhd->bthd", weights, v).flatten(2))
    torch.testing.assert_close(mixer(x), want, rtol=1e-12, atol=1e-12)


def test_sinks_are_those_of_each_document():
    mixer, t = build(window=5, sink_tokens=2), torch.arange(60)
    ids = (t >= 25).long()[None]
    got = influence(lambda x: mixer(x, documents=ids), 60)
    place = torch.where(t < 25, t, t - 25)
    distance = t[:, None] - t
    want = (distance >= 0) & ((distance < 5) | (place < 2)) & (ids == ids.T)
    assert torch.equal(got, want)


@pytest.mark.parametrize("sink_tokens", [0, 2])
@pytest.mark.parametrize("prefill", [1, 5, 8, 9, 30])
def test_a_ring_decodes_far_past_the_window(prefill, sink_tokens):
    mixer, x = build(window=8, sink_tokens=sink_tokens, kv_heads=2, sink_logits=True), draw(2, 100, 32)
    with torch.no_grad():
        mixer.sink_logits.normal_()
        cache = mixer.new_cache(2, dtype=torch.float64)
        pieces = x.split([prefill] + [1] * (100 - prefill), 1)
        got = torch.cat([mixer(piece, cache=cache) for piece in pieces], 1)
        torch.testing.assert_close(got, mixer(x), rtol=1e-11, atol=1e-11)
    assert cache.keys.shape[1] == 8 + sink_tokens


@pytest.mark.parametrize(("window", "sink_tokens"), [(1, 0), (7, 0), (7, 2), (64, 4), (5, 100)])
@pytest.mark.parametrize("context", [1, 8, 9, 70, 200])
def test_the_cost_is_that_of_the_pairs(window, sink_tokens, context):
    mixer, x = build(window=window, sink_tokens=sink_tokens), draw(1, context, 32)
    pairs = int(seen(context, window, sink_tokens).sum())
    projections = 2 * sum(p.numel() for p in mixer.parameters()) * context
    assert mixer.cost(context).flops_per_token * context == pytest.approx(projections + 4 * 32 * pairs, rel=1e-12)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mixer(x)
    assert counter.get_total_flops() == projections + 4 * 32 * pairs


@pytest.mark.parametrize(
    ("options", "message"),
    [({"window": 0}, "window=0: expected at least 1"), ({"sink_tokens": -1}, "sink_tokens=-1: expected 0 or more")],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
