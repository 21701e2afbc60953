"""Top-k attention: what is picked, that nothing else is touched, and where the gradient goes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from tests.tiers import in_ci
from zoo.mixers.parts.selection import pick, picked_blocks
from zoo.mixers.topk import attend_tokens

WIDTH, HEADS = 32, 4


def build(**options):
    torch.manual_seed(0)
    mixer = zoo.mixers.build("topk", **({"width": WIDTH, "heads": HEADS, "rope_theta": None} | options)).double()
    with torch.no_grad():
        mixer.query.weight *= 3
    return mixer


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def heads(mixer, x):
    """Queries, keys and values ``(B, H, T, D)``, keys repeated."""
    q, k, v = (m(x).unflatten(-1, (-1, mixer.head_dim)).transpose(1, 2) for m in (mixer.query, mixer.key, mixer.value))
    return q, *(y.repeat_interleave(mixer.heads // mixer.kv_heads, 1) for y in (k, v))


def naive(mixer, x, k, block, weight):
    """Query by query, from the equation."""
    q, keys, values = heads(mixer, x)
    rows = []
    for t in range(x.shape[1]):
        query, own = q[:, :, t, None] / q.shape[-1] ** 0.5, t // block * block
        logits = [(query @ keys[:, :, own : t + 1].mT)[:, :, 0]]
        used = [values[:, :, own : t + 1]]
        if own:
            blocks = keys[:, :, :own].unflatten(2, (-1, block))
            scores = (blocks.mean(3) * query).sum(-1)
            best = scores.argsort(dim=-1, descending=True, stable=True)[..., : min(k, own // block)]
            of_tokens = (blocks * query[..., None, :]).sum(-1) + weight * scores[..., None]
            at = best[..., None].expand(*best.shape, block)
            logits.append(of_tokens.gather(2, at).flatten(2))
            past = values[:, :, :own].unflatten(2, (-1, block))
            used.append(past.gather(2, at[..., None].expand(*at.shape, past.shape[-1])).flatten(2, 3))
        weights = torch.cat(logits, -1).softmax(-1)
        rows.append((weights[:, :, None] @ torch.cat(used, 2))[:, :, 0])
    return mixer.out(torch.stack(rows, 1).flatten(2))


def naive_tokens(mixer, x, k):
    q, keys, values = heads(mixer, x)
    scores = q @ keys.mT / q.shape[-1] ** 0.5
    hidden = torch.ones_like(scores, dtype=torch.bool)
    for t in range(x.shape[1]):
        hidden[:, :, t].scatter_(-1, scores[:, :, t, : t + 1].argsort(dim=-1, descending=True)[..., :k], False)
    return mixer.out((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(1, 2).flatten(2))


def assert_same(got, want, mixer, x):
    """Outputs and all gradients."""
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    weight, leaves = draw(*want.shape), [x, *mixer.parameters()]
    grads = [torch.autograd.grad((y * weight).sum(), leaves) for y in (got, want)]
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("k", "block", "length"), [(1, 16, 133), (3, 16, 200), (2, 32, 160), (2, 64, 400), (50, 16, 100)]
)
@pytest.mark.parametrize(("groups", "weight"), [*in_ci((4, 1.0), (2, 0.0)), (1, 0.7)])
def test_blocks_equal_the_equation_with_all_gradients(k, block, length, groups, weight):
    mixer = build(top_k=k, block=block, kv_heads=groups, score_weight=weight)
    x = draw(2, length, WIDTH).requires_grad_()
    assert_same(mixer(x), naive(mixer, x, k, block, weight), mixer, x)


@pytest.mark.parametrize("k", [1, 5, 500])
def test_tokens_equal_the_dense_top_k_with_all_gradients(k):
    mixer, x = build(top_k=k, unit="token", kv_heads=2), draw(2, 90, WIDTH).requires_grad_()
    assert_same(mixer(x), naive_tokens(mixer, x, k), mixer, x)


@pytest.mark.parametrize(
    "options", [{"top_k": 8, "block": 16, "score_weight": 0.0}, {"top_k": 200, "unit": "token"}], ids=str
)
def test_everything_picked_is_softmax_attention(options):
    mixer, x = build(**options), draw(2, 140, WIDTH)
    full = zoo.mixers.build("softmax", width=WIDTH, heads=HEADS, rope_theta=None).double()
    full.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x), full(x), rtol=1e-10, atol=1e-10)


def test_every_query_may_pick_the_same_block():
    """The first block is then read by as many groups as there are blocks behind it."""
    mixer, x = build(top_k=2, block=16, score_weight=0.3), draw(1, 180, WIDTH)
    with torch.no_grad():
        mixer.key.weight.copy_(mixer.query.weight)
        x[:, :, :] = x[:, :1] + 0.1 * x
        x[:, :16] *= 3
    torch.testing.assert_close(mixer(x), naive(mixer, x, 2, 16, 0.3), rtol=1e-10, atol=1e-10)


def test_picks_come_best_first_and_the_earlier_of_equal_ones():
    means = torch.tensor([0.0, 2.0, -0.0, 2.0, 1.0, 9.0, 2.0]).view(1, 7, 1, 1)
    q, zero = torch.ones(1, 6, 1, 1), torch.zeros(1, 6, dtype=torch.long)
    last = torch.tensor([[0, 1, 3, 4, 5, 7]])
    got = pick(q, means, zero, last, 3)[0, :, 0].tolist()
    assert got == [[-1, -1, -1], [0, -1, -1], [1, 0, 2], [1, 3, 0], [1, 3, 4], [5, 1, 3]]
    got = pick(-q, means, zero, last, 3)[0, :, 0].tolist()
    assert got == [[-1, -1, -1], [0, -1, -1], [0, 2, 1], [0, 2, 1], [0, 2, 4], [0, 2, 4]]
    assert pick(q, means, zero + 2, last, 2)[0, 4, 0].tolist() == [3, 4]
    zeros = 1e-60 * torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64)  # in fp32
    got = pick(q[:, :1].double(), zeros.view(1, 3, 1, 1), zero[:, :1], zero[:, :1] + 3, 3)
    assert got.flatten().tolist() == [0, 1, 2]


def test_equal_keys_give_the_first_blocks_in_a_sequence_and_in_a_step():
    mixer, x = build(top_k=2, block=16), draw(1, 101, WIDTH)
    with torch.no_grad():
        mixer.key.weight.zero_()
    want = naive(mixer, x, 2, 16, 1.0)
    torch.testing.assert_close(mixer(x), want)
    cache = mixer.new_cache(1, dtype=torch.float64)
    with torch.no_grad():
        parts = [mixer(piece, cache=cache) for piece in x.split([98, 1, 1, 1], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), want)


@pytest.mark.parametrize("unit", ["block", "token"])
def test_more_picks_read_more(unit):
    """The number of tokens that reach the output grows with k, up to all of the past."""
    x, t = draw(1, 112, WIDTH), 110
    sizes = []
    for k in (1, 2, 3, 200):
        mixer = build(top_k=k, block=16, unit=unit, score_weight=0.0, heads=1)
        seen = []
        mixer.value.register_forward_hook(lambda _, __, v, seen=seen: seen.append(v.requires_grad_()) or v)
        (grad,) = torch.autograd.grad(mixer(x)[0, t].sum(), seen)
        sizes.append(int(grad[0].any(-1).sum()))
    assert sizes == ([31, 47, 63, 111] if unit == "block" else [1, 2, 3, 111])


def test_a_small_change_of_a_block_that_is_not_picked_changes_nothing_at_all():
    mixer, t = build(top_k=1, block=16, heads=1).float(), 75
    x = torch.randn(1, 80, WIDTH)
    q, k, _ = heads(mixer, x)
    scores = k[:, :, :64].unflatten(2, (4, 16)).mean(3) @ q[:, :, t, :, None]
    worst, best = int(scores.argmin()), int(scores.argmax())
    before = mixer(x)[:, t]
    for block, same in ((worst, True), (best, False)):
        changed = x.clone()
        changed[:, 16 * block + 3] += 1e-3
        assert torch.equal(mixer(changed)[:, t], before) == same


def test_a_query_chooses_for_itself_inside_its_block():
    """With queries pooled over a block, a later query would change what earlier ones of its block read."""
    mixer, x = build(top_k=1, block=16), draw(1, 80, WIDTH)
    changed = x.clone()
    changed[:, 63] *= -30
    y, z = mixer(x), mixer(changed)
    assert torch.equal(y[:, :63], z[:, :63])
    assert not torch.allclose(y[:, 64:], z[:, 64:])


def test_the_score_has_a_gradient():
    """Moving a picked block's mean key while its attention inside stays the same moves weight between blocks."""
    x = draw(1, 60, WIDTH)
    mixer = build(top_k=2, block=16, score_weight=1.0)
    weight, direction, step = draw(1, 60, WIDTH), draw(WIDTH, WIDTH), 1e-6
    (grad,) = torch.autograd.grad((mixer(x) * weight).sum(), mixer.query.weight)
    losses, start = [], mixer.query.weight.detach().clone()
    with torch.no_grad():
        for sign in (1, -1):
            mixer.query.weight.copy_(start + sign * step * direction)
            losses.append((mixer(x) * weight).sum())
    torch.testing.assert_close((grad * direction).sum(), (losses[0] - losses[1]) / (2 * step), rtol=1e-6, atol=1e-6)
    plain = build(top_k=2, block=16, score_weight=0.0)
    assert not torch.allclose(torch.autograd.grad((plain(x) * weight).sum(), plain.query.weight)[0], grad)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100, 160])
@pytest.mark.parametrize("count", [1, 3, 99])
def test_picked_blocks_are_counted(length, count):
    want = [min(count, t // 16) for t in range(length)]
    assert picked_blocks(0, length, 16, count) == sum(want)
    assert picked_blocks(length // 3, length, 16, count) == sum(want[length // 3 :])


@pytest.mark.parametrize("k", [1, 3])
def test_only_own_and_picked_blocks_are_touched_forward_and_backward(k):
    """Groups are padded to whole blocks: at most one block of queries per block of keys and one sequence of K + 1."""
    length, block, width = 1024, 32, WIDTH
    mixer, x = build(top_k=k, block=block), draw(1, length, WIDTH).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        y = mixer(x)
    forward = counter.get_total_flops()
    cost = mixer.cost(length).flops_per_token * length
    spare = 4 * width * block**2 * (length // block + 2 * (k + 1)) + 2 * width * length * length // block
    assert cost <= forward <= cost + spare
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    projections = 2 * 4 * width**2 * length
    assert counter.get_total_flops() <= 2 * projections + 2.5 * (cost - projections + spare)
    assert forward + counter.get_total_flops() < 0.5 * 3.5 * 4 * width * length**2 / 2  # of full attention


def test_a_step_reads_own_and_picked_keys_only():
    mixer, cost = build(top_k=2, block=16), {}
    for context in (100, 1000):
        cost[context] = mixer.step_flops(context)
    assert cost[1000] - cost[100] == WIDTH * (2 * (62 - 6) + 4 * (8 - 4))


@pytest.mark.parametrize("lengths", [[64, 1, 135], [1] * 200, [40, 40, 40, 80]])
def test_packed_blocks_count_from_the_start_of_a_document(lengths):
    mixer, x = build(top_k=1, block=16), draw(1, 200, WIDTH)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    want = torch.cat([naive(mixer, part, 1, 16, 1.0) for part in x.split(lengths, 1)], 1)
    torch.testing.assert_close(mixer(x, documents=ids), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k=0: expected at least one block"),
        ({"top_k": 0, "unit": "token"}, "top_k=0: expected at least one token"),
        ({"block": 48}, "block=48: expected one of 16, 32, 64, 128"),
        ({"unit": "head"}, "unit='head': expected one of block, token"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_are_compared_in_fp32(dtype):
    """Queries and means of few bits, whose products differ by less than these can hold."""
    q = torch.tensor([1.0, 2**-6, 1.0, 0.0], dtype=dtype).view(1, 1, 1, 4)
    means = torch.tensor([[8.0, 0, 0, 0], [8, 1, 0, 0], [8, 0, 2**-5, 0], [0, 0, 8, 0]], dtype=torch.float32)
    means = means.to(dtype).float().view(1, 4, 1, 4)
    zero = torch.zeros(1, 1, dtype=torch.long)
    assert pick(q, means, zero, zero + 4, 4).flatten().tolist() == [2, 1, 0, 3]
    assert pick(q, means.to(dtype), zero, zero + 4, 4).flatten().tolist() == [2, 1, 0, 3]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_of_equal_keys_the_earlier_tokens_are_read(count):
    """Values say which: keys 1, 2 and 4 have the highest score, 0 and 3 a lower one."""
    k = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64).view(1, 5, 1, 1)
    v = torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4], dtype=torch.float64).view(1, 5, 1, 1)
    q = torch.full((1, 1, 1, 1), 5.0, dtype=torch.float64)
    got = attend_tokens(q, k, v, torch.ones(1, 1, 5, dtype=torch.bool), count)
    assert got.item() == pytest.approx(torch.tensor([10.0, 100.0, 1e4])[:count].mean().item(), rel=1e-12)
    allowed = torch.tensor([True, False, True, True, True]).view(1, 1, 5)
    first = attend_tokens(q, k, v, allowed, 1)
    assert first.item() == pytest.approx(100.0, rel=1e-12)
