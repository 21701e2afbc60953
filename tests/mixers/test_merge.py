"""Attention over disjoint sets of keys, merged by log-sum-exp, is attention over their union."""

from __future__ import annotations

import pytest
import torch

from zoo.mixers.parts.merge import merge


def attend(scores, v):
    """Output ``(B, T, H, E)`` and log-sum-exp ``(B, T, H)`` of scores ``(B, H, T, J)`` and values ``(B, J, H, E)``."""
    weights = torch.nan_to_num(scores.softmax(-1))
    return torch.einsum("bhtj,bjhe->bthe", weights, v), scores.logsumexp(-1).transpose(1, 2)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("cuts", [[12], [5, 7], [1, 4, 7]], ids=str)
@pytest.mark.parametrize("scale", [1, 100])
def test_parts_of_the_keys_merge_to_all_of_them(cuts, scale):
    scores, v = draw(2, 3, 5, 12), draw(2, 12, 3, 4)
    want = attend(scale * scores, v)
    got = merge([attend(scale * s, x) for s, x in zip(scores.split(cuts, -1), v.split(cuts, 1))])
    weights = [torch.randn_like(y) for y in want]
    grads = [torch.autograd.grad([*y], [scores, v], weights, retain_graph=True) for y in (want, got)]
    for ours, theirs in zip((*got, *grads[1]), (*want, *grads[0])):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_parts_without_a_key_add_nothing_and_give_no_nan():
    """Row 0 has no key at all, row 1 none in the first part, row 2 none in the second."""
    outputs, sums = [draw(1, 4, 2, 3) for _ in range(2)], [draw(1, 4, 2) for _ in range(2)]
    with torch.no_grad():
        for part, rows in ((0, [0, 1]), (1, [0, 2])):
            sums[part][:, rows], outputs[part][:, rows] = -torch.inf, 0
    output, lse = merge(list(zip(outputs, sums)))
    assert not output[:, 0].any()
    assert (lse[:, 0] == -torch.inf).all()
    for row, part in ((1, 1), (2, 0)):
        assert torch.equal(output[:, row], outputs[part][:, row])
        assert torch.equal(lse[:, row], sums[part][:, row])
    grads = torch.autograd.grad([output, lse], [*outputs, *sums], [torch.randn_like(output), torch.randn_like(lse)])
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert not any(grad[:, 0].any() for grad in grads)
    assert all(grad[:, 3].all() for grad in grads)


def test_the_outputs_keep_their_dtype_and_the_sums_are_wide():
    parts = [(torch.randn(1, 2, 3, 4).bfloat16(), torch.randn(1, 2, 3)) for _ in range(2)]
    output, lse = merge(parts)
    want, _ = merge([(o.double(), s.double()) for o, s in parts])
    assert (output.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output, want.bfloat16())


def test_nothing_to_merge_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        merge([])
