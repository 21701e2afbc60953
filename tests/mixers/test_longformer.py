"""Longformer against a dense masked softmax: which keys are read, once each, on every way through it."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.tiers import in_ci, named
from zoo.mixers.caches.global_tokens import GlobalTokens
from zoo.mixers.parts.positions import rotate

WIDTH, HEADS = 32, 4

OPTIONS = [
    {"window": 5, "global_tokens": 0},
    {"window": 5, "global_tokens": 3},
    {"window": 5, "global_tokens": 3, "global_every": 7},
    {"window": 1, "global_tokens": 0, "global_every": 2, "kv_heads": 1},
    {"window": 9, "global_tokens": 2, "global_every": 1},
    {"window": 300, "global_tokens": 2, "global_every": 3},
    {"window": 5, "global_tokens": 0, "separators": True},
    {"window": 5, "global_tokens": 3, "separators": True, "global_every": 11, "kv_heads": 2},
    {"window": 4, "global_tokens": 3, "dilation": 3},
    {"window": 4, "global_tokens": 0, "global_every": 5, "dilation": [1, 3, 4]},
    {"window": 3, "global_tokens": 2, "separators": True, "dilation": [2, 1], "kv_heads": 2},
    {"window": 4, "global_tokens": 9, "global_rows": "full"},
    {"window": 9, "global_tokens": 4, "global_rows": "full"},
    {"window": 5, "global_tokens": 1, "global_every": 6, "global_rows": "full", "kv_heads": 2},
    {"window": 5, "global_tokens": 2, "separators": True, "global_rows": "full"},
    {"window": 3, "global_tokens": 2, "separators": True, "global_every": 9, "global_rows": "full", "dilation": [1, 5]},
]
FEW = (2, 7, 9, 10, 13, 15)  # each kind of global token, of near keys and of rows
REST = [options for i, options in enumerate(OPTIONS) if i not in FEW]
every_option = pytest.mark.parametrize("options", [*(OPTIONS[i] for i in FEW), *in_ci(*REST)], ids=str)
SPLITS = {
    "whole": [140],
    "tokens": [1] * 140,
    "prefill": [100] + [1] * 40,
    "mixed": [1, 1, 70, 1, 2, 64, 1],
    "chunks": [30, 40, 50, 20],
}


def build(**options):
    torch.manual_seed(0)
    mixer = zoo.mixers.build("longformer", width=WIDTH, heads=HEADS, **options).double()
    with torch.no_grad():
        mixer.query.weight *= 3
    return mixer


def draw(batch, length):
    return torch.randn(batch, length, WIDTH, dtype=torch.float64)


def draw_separators(batch, length, share=0.12):
    return torch.rand(batch, length, generator=torch.Generator().manual_seed(3)) < share


def read_keys(length, mark, head, *, window, dilation=None, kv_heads=HEADS, **options):
    """``(T, T)`` bool of one document: the definition, one pair at a time."""
    rates = [1] if dilation is None else [dilation] if isinstance(dilation, int) else dilation
    rate = rates[:kv_heads][(head // (HEADS // kv_heads)) % len(rates[:kv_heads])]
    every = options.get("global_every")
    is_global = [
        t < options["global_tokens"]
        or (every is not None and t % every == every - 1)
        or bool(options.get("separators") and mark[t])
        for t in range(length)
    ]
    seen = torch.zeros(length, length, dtype=torch.bool)
    for t in range(length):
        for j in range(t + 1):
            tap = (t - j) % rate == 0 and (t - j) // rate < window
            seen[t, j] = tap or is_global[j] or (options.get("global_rows") == "full" and is_global[t])
    return seen


def dense(mixer, x, separators, documents, options):
    """One masked softmax over all keys per head."""
    batch, length = x.shape[:2]
    output = torch.zeros(batch, length, HEADS, WIDTH // HEADS, dtype=x.dtype)
    for row in range(batch):
        for part in spans(documents[row]):
            y = x[row : row + 1, part]
            q, k, v = (proj(y).unflatten(-1, (-1, WIDTH // HEADS)) for proj in (mixer.query, mixer.key, mixer.value))
            q, k = (rotate(z, torch.arange(y.shape[1])[None], 10000.0) for z in (q, k))
            for head in range(HEADS):
                group = head // (HEADS // mixer.kv_heads)
                scores = q[0, :, head] @ k[0, :, group].T / (WIDTH // HEADS) ** 0.5
                seen = read_keys(y.shape[1], separators[row, part], head, **options)
                assert seen.any(1).all()
                output[row, part, head] = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[0, :, group]
    return mixer.out(output.flatten(2))


def spans(ids):
    cuts = [0, *((ids[1:] != ids[:-1]).nonzero()[:, 0] + 1).tolist(), len(ids)]
    return [slice(a, b) for a, b in pairwise(cuts)]


def compare(got, want, x, tolerance=1e-10):
    weight = torch.randn_like(want)
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    grads = [torch.autograd.grad((y * weight).sum(), x, retain_graph=True)[0] for y in (got, want)]
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


@every_option
@pytest.mark.parametrize("length", [*in_ci(1, 20, 63, 140), 64])
def test_equals_one_dense_masked_softmax(options, length):
    mixer, x, separators = build(**options), draw(2, length).requires_grad_(), draw_separators(2, length)
    want = dense(mixer, x, separators, torch.zeros(2, length), options)
    compare(mixer(x, separators=separators), want, x)


@every_option
def test_packed_documents_equal_one_dense_masked_softmax_each(options):
    mixer, x, separators = build(**options), draw(2, 140).requires_grad_(), draw_separators(2, 140)
    documents = torch.tensor([[3] * 1 + [9] * 70 + [2] * 69, [4] * 64 + [5] * 2 + [1] * 74])
    compare(mixer(x, separators=separators, documents=documents), dense(mixer, x, separators, documents, options), x)


@every_option
def test_marks_that_are_not_given_are_no_separators(options):
    mixer, x = build(**options), draw(2, 40)
    assert torch.equal(mixer(x), mixer(x, separators=torch.zeros(2, 40, dtype=torch.bool)))


@every_option
@pytest.mark.parametrize("pieces", named(SPLITS, "mixed"))
def test_any_split_with_separators_equals_the_whole(options, pieces):
    mixer, x, separators = build(**options), draw(2, 140), draw_separators(2, 140)
    with torch.no_grad():
        want = mixer(x, separators=separators)
        for capacity in (None, 9, 140):
            cache = mixer.new_cache(2, capacity, dtype=torch.float64)
            parts = zip(x.split(pieces, 1), separators.split(pieces, 1))
            got = torch.cat([mixer(piece, separators=mark, cache=cache) for piece, mark in parts], 1)
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@every_option
@pytest.mark.parametrize(
    "steps",
    [[[30, 1, 70], [1, 1, 1], [1, 1, 0], [1, 0, 1], [20, 3, 0]], [[0, 9, 1]] + [[1, 1, 1]] * 30],
    ids=["a", "b"],
)
def test_ragged_pieces_with_separators_equal_each_row_alone(options, steps):
    """Padding is marked, and filled with outliers."""
    mixer, totals = build(**options), torch.tensor(steps).sum(0).tolist()
    x, separators = draw(3, max(totals)), draw_separators(3, max(totals))
    with torch.no_grad():
        want = [mixer(x[i : i + 1, :n], separators=separators[i : i + 1, :n])[0] for i, n in enumerate(totals)]
        cache, done = mixer.new_cache(3, dtype=torch.float64), [0, 0, 0]
        for step in steps:
            piece, mark = 1e3 * draw(3, max(step)), torch.ones(3, max(step), dtype=torch.bool)
            for i, n in enumerate(step):
                piece[i, :n], mark[i, :n] = x[i, done[i] : done[i] + n], separators[i, done[i] : done[i] + n]
            y = mixer(
                piece, separators=mark, cache=cache, lengths=None if min(step) == max(step) else torch.tensor(step)
            )
            for i, n in enumerate(step):
                torch.testing.assert_close(y[i, :n], want[i][done[i] : done[i] + n], rtol=1e-10, atol=1e-10)
                done[i] += n


def test_pieces_with_and_without_separators_mix():
    mixer, x, separators = build(window=4, global_tokens=1, separators=True), draw(1, 60), draw_separators(1, 60)
    separators[:, 20:40] = False
    with torch.no_grad():
        cache = mixer.new_cache(1, dtype=torch.float64)
        given = [separators[:, :20], *[None] * 20, separators[:, 40:]]
        got = [mixer(piece, separators=m, cache=cache) for piece, m in zip(x.split([20] + [1] * 20 + [20], 1), given)]
    torch.testing.assert_close(torch.cat(got, 1), mixer(x, separators=separators), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rows", ["sparse", "full"])
def test_a_mark_changes_nothing_before_it(rows):
    mixer = build(window=4, global_tokens=1, separators=True, global_rows=rows)
    x, separators = draw(1, 90), draw_separators(1, 90)
    want = mixer(x, separators=separators)
    for t in (7, 40, 63, 64):
        changed = separators.clone()
        changed[:, t] ^= True
        got = mixer(x, separators=changed)
        torch.testing.assert_close(got[:, :t], want[:, :t], rtol=1e-12, atol=1e-12)
        later = (got - want).abs().amax(-1)[:, t + 4 :]
        assert later[~separators[:, t + 4 :]].min() > 1e-9  # full rows have read it anyway
        assert torch.allclose(got[:, t], want[:, t], rtol=1e-9) == (rows == "sparse")


def test_without_globals_it_is_the_window():
    mixer, x = build(window=7, global_tokens=0), draw(2, 90)
    window = zoo.mixers.build("window", width=WIDTH, heads=HEADS, window=7, sink_tokens=0).double()
    window.load_state_dict(mixer.state_dict())
    assert torch.equal(mixer(x), window(x))


@pytest.mark.parametrize("options", [{}, {"global_every": 5}, {"separators": True, "global_rows": "full"}], ids=str)
def test_a_window_of_the_whole_sequence_is_softmax(options):
    mixer, x = build(window=90, **options), draw(2, 90)
    full = zoo.mixers.build("softmax", width=WIDTH, heads=HEADS).double()
    full.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x, separators=draw_separators(2, 90)), full(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("growth", "windows"), [(1.0, [6, 6, 6]), (2.0, [6, 12, 24]), (1.3, [6, 8, 10]), (0.1, [6, 1, 1])]
)
def test_the_window_grows_with_the_layer(growth, windows):
    mixers = [build(window=6, window_growth=growth, global_tokens=0, depth=3, layer=layer) for layer in range(3)]
    x = draw(1, 40).requires_grad_()
    for mixer, window in zip(mixers, windows):
        (grad,) = torch.autograd.grad(mixer(x)[:, -1].square().sum(), x)
        assert grad.abs().amax(-1).gt(0).sum() == window


def test_the_host_counts_the_keys_of_a_step_without_a_walk_over_the_window(monkeypatch):
    """Once for rows of equal length, and not tap by tap."""
    mixer, x = build(window=30, global_tokens=2, dilation=[1, 3], global_every=7), draw(5, 60)
    walked, counted = [], []
    fixed, reads = GlobalTokens.fixed, type(mixer)._reads
    monkeypatch.setattr(GlobalTokens, "fixed", lambda *given: (walked.append(given), fixed(*given))[1])
    monkeypatch.setattr(type(mixer), "_reads", lambda *given: (counted.append(given), reads(*given))[1])
    with torch.no_grad():
        cache = mixer.new_cache(5, dtype=torch.float64)
        mixer(x[:, :-1], cache=cache)
        mixer(x[:, -1:], cache=cache)
    assert len(counted) == len(mixer.near) == 2 and not walked


@every_option
@pytest.mark.parametrize("context", [20, *in_ci(1, 150)])
def test_training_flops_are_the_pairs_of_the_definition(options, context):
    mixer, none = build(**options), torch.zeros(context, dtype=torch.bool)
    pairs = sum(int(read_keys(context, none, head, **options).sum()) for head in range(HEADS))
    projections = 2 * sum(m.weight.numel() for m in mixer.modules() if isinstance(m, torch.nn.Linear))
    total = projections * context + pairs * 4 * WIDTH // HEADS
    assert mixer.cost(context).flops_per_token * context == pytest.approx(total, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_reads_no_more_than_the_definition(options):
    mixer, x, none = build(**options), draw(1, 90), torch.zeros(90, dtype=torch.bool)
    cache = mixer.new_cache(1, dtype=torch.float64)
    seen = sum(read_keys(90, none, head, **options).sum(1) for head in range(HEADS))
    projections = 2 * sum(m.weight.numel() for m in mixer.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        for t in range(90):
            with FlopCounterMode(display=False) as counter:
                mixer(x[:, t : t + 1], cache=cache)
            assert counter.get_total_flops() == projections + int(seen[t]) * 4 * WIDTH // HEADS
            assert not t or counter.get_total_flops() == mixer.cost(t).decode_flops_per_token


def test_separators_that_left_the_window_are_all_that_a_cache_adds():
    mixer, x = build(window=8, global_tokens=2, separators=True), draw(1, 200)
    separators = torch.zeros(1, 200, dtype=torch.bool)
    separators[:, [0, 50, 120, 121, 191, 192]] = True
    for pieces in ([200], [190] + [1] * 10, [1] * 200):
        cache = mixer.new_cache(1, dtype=torch.float32)
        with torch.no_grad():
            for piece, mark in zip(x.split(pieces, 1), separators.split(pieces, 1)):
                mixer(piece, separators=mark, cache=cache)
        assert cache.nbytes() == 2 * (2 + 8 + 4) * WIDTH * 4


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("rows", ["sparse", "full"])
def test_work_does_not_grow_with_the_square(documents, rows):
    """Counted over all pairs of listed blocks, forward and backward."""
    x = torch.randn(1, 2048, WIDTH, requires_grad=True)
    ids = torch.zeros(1, 2048, dtype=torch.long) if documents else None
    flops = []
    for name, options in (
        ("softmax", {}),
        ("longformer", {"window": 64, "global_tokens": 8, "global_every": 128, "global_rows": rows}),
    ):
        mixer = zoo.mixers.build(name, width=WIDTH, heads=HEADS, **options)
        with FlopCounterMode(display=False) as counter:
            mixer(x, documents=ids).square().sum().backward()
        flops.append(counter.get_total_flops() - 3 * 2048 * 8 * WIDTH**2)
    assert flops[1] < (0.15 if rows == "sparse" else 0.2) * flops[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [OPTIONS[i] for i in (2, 10, 13)], ids=str)
def test_compiled_in_one_graph_equals_eager(options):
    mixer, x, separators = build(**options), draw(2, 140).requires_grad_(), draw_separators(2, 140)
    torch._dynamo.reset()
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True, dynamic=False)
    documents = torch.tensor([[3] * 1 + [9] * 70 + [2] * 69, [4] * 64 + [5] * 2 + [1] * 74])
    for how in ({}, {"separators": separators, "documents": documents}):
        compare(compiled(x, **how), mixer(x, **how), x, 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0: expected at least 1"),
        ({"window_growth": 0.0}, r"window_growth=0.0: expected a factor"),
        ({"window_growth": 1e300, "depth": 4, "layer": 3}, r"window_growth=1e\+300 give layer 3 more than 2\^40 keys"),
        ({"window_growth": 1e5, "depth": 90, "layer": 80}, r"window_growth=100000.0 give layer 80 more than 2\^40"),
        ({"global_tokens": -1}, "global_tokens=-1"),
        ({"global_every": 0}, "global_every=0"),
        ({"global_rows": "some"}, "global_rows='some': expected one of sparse, full"),
        ({"dilation": [1, 0]}, r"dilation=\[1, 0\]"),
        ({"dilation": []}, r"dilation=\[\]"),
    ],
)
def test_values_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_no_rate_is_left_out_without_a_word(caplog):
    assert [near.rate for near in build(dilation=[1, 4], kv_heads=2).near] == [1, 4] and not caplog.records
    assert [near.rate for near in build(dilation=[1, 4], kv_heads=1).near] == [1]
    assert "dilation=[1, 4]" in caplog.text and "[4] are not used" in caplog.text
