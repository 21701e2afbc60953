"""What others got wrong, with the numbers of their reports, for every attention with a convolution or a state."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests.mixers import test_comba, test_gated_deltanet, test_gdn2, test_kda, test_log_linear, test_mamba2
from tests.mixers.recurrences import assert_equals, close, draw, drawn

NAMES = (
    "deltanet",
    "gated_deltanet",
    "kda",
    "gdn2",
    "comba",
    "gla",
    "hgrn2",
    "mamba2",
    "mamba3",
    "rwkv7",
    "log_linear",
)
OF_RATES = {  # those whose decay has a rate, with their recurrences
    "gated_deltanet": test_gated_deltanet.oracle,
    "kda": test_kda.oracle,
    "gdn2": test_gdn2.oracle,
    "comba": test_comba.oracle,
    "mamba2": test_mamba2.oracle,
    "log_linear": test_log_linear.oracle,
}
every = pytest.mark.parametrize("name", NAMES)


def make(name, dtype=torch.float32, **options):
    return drawn(name, head_dim=8, **options).to(dtype) if name != "rwkv7" else drawn(name).to(dtype)


@every
def test_documents_reach_each_other_neither_through_convolution_nor_state(name):
    """Automodel#2147, ms-swift#9618, transformers#46859, slime#1686, miles#2213, torchtitan#3892."""
    mixer, x = make(name), torch.randn(1, 90, 16)
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor([3, 40, 2, 45]))[None]
    want = mixer(x, documents=ids)
    for document in range(4):
        changed = torch.where((ids == document)[..., None], x, 1e3 * torch.randn_like(x))
        kept = ids == document
        assert torch.equal(mixer(changed, documents=ids)[kept], want[kept])


@every
@pytest.mark.parametrize("scale", [0.0, 1e3])
def test_padding_on_the_left_is_a_document_of_its_own(name, scale):
    """maxtext#5295, transformers#48256: padding bled through the convolution, or decayed the state."""
    mixer, x = make(name, torch.float64), draw(2, 40, 16)
    padding = torch.tensor([7, 0])
    left = scale * draw(2, 47, 16)
    ids = (torch.arange(47)[None] >= padding[:, None]).long()
    for row, count in enumerate(padding.tolist()):
        left[row, count : count + 40] = x[row]
    y, alone = mixer(left, documents=ids), mixer(x)
    for row, count in enumerate(padding.tolist()):
        close(y[row, count : count + 40], alone[row])


@every
def test_padding_on_the_right_changes_nothing_that_is_remembered(name):
    """transformers#48256, #45938: the state decayed over padding, and the convolution remembered it."""
    mixer, x = make(name, torch.float64), draw(1, 40, 16)
    padded = torch.cat([x, torch.full((1, 9, 16), torch.nan).double()], 1)
    alone, behind = (mixer.new_cache(1, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        mixer(x, cache=alone)
        mixer(padded, cache=behind, lengths=torch.tensor([40]))
    for key, held in alone.state_dict().items():
        if isinstance(held, torch.Tensor):
            torch.testing.assert_close(behind.state_dict()[key], held, rtol=1e-9, atol=1e-12)


@every
def test_silence_has_a_gradient(name):
    """maxtext#5295: the norm of a zero has none."""
    mixer = make(name)
    x = torch.zeros(1, 20, 16, requires_grad=True)
    mixer(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters() if p.grad is not None)


@every
def test_a_second_piece_goes_on_where_the_first_ended(name):
    """transformers#45513: one of several tokens began anew; fla#546: one shorter than the convolution."""
    mixer, x = make(name, torch.float64), draw(1, 60, 16)
    want = mixer(x)
    for pieces in ([20, 40], [1, 1, 58], [2, 2, 2, 54], [30, 1, 2, 27]):
        cache = mixer.new_cache(1, dtype=torch.float64)
        with torch.no_grad():
            close(torch.cat([mixer(piece, cache=cache) for piece in x.split(pieces, 1)], 1), want)


@every
def test_later_gates_change_nothing_earlier_not_one_bit(name):
    """fla#1240: decays that were measured from a later token changed earlier outputs by their rounding."""
    mixer, x = make(name), torch.randn(1, 100, 16)
    want = mixer(x)
    for t in (1, 17, 63, 64, 90):
        changed = x.clone()
        changed[:, t:] = 30 * torch.randn(1, 100 - t, 16)
        assert torch.equal(mixer(changed)[:, :t], want[:, :t])


@pytest.mark.parametrize("name", OF_RATES)
@pytest.mark.parametrize("log_rate", [-1000.0, 9.0])
def test_gates_that_keep_all_and_that_keep_nothing(name, log_rate):
    """fla#99, #104, #111. Gradients of gates that keep nothing are 0 but for rounding."""
    mixer = drawn(name, head_dim=8)
    with torch.no_grad():
        mixer.decay.log_rate.fill_(log_rate)
        mixer.decay.bias.fill_(0.0)
    assert_equals(mixer, OF_RATES[name], gradients=False)


@pytest.mark.parametrize("name", ["deltanet", "gated_deltanet", "kda", "gdn2"])
def test_one_token_again_and_again_at_the_largest_strength_stays_finite(name):
    """fla#77, #99, #111: equal keys at beta 2, where an inverse by powers has an error of 3e10."""
    mixer = make(name, beta_max=2.0)
    x = torch.randn(1, 1, 16).expand(1, 3000, 16).clone().requires_grad_()
    with torch.no_grad():
        for part in ("beta", "erased"):
            if hasattr(mixer, part):
                weight = getattr(mixer, part).projection.weight
                weight.copy_(30 * x[0, 0].expand_as(weight) / x[0, 0].square().sum())
        if hasattr(mixer, "decay"):
            mixer.decay.log_rate.fill_(-1000)
    y = mixer(x)
    y.square().mean().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()
    cache = mixer.new_cache(1)
    with torch.no_grad():
        mixer(x, cache=cache)
    assert cache.state.norm() < 100


def test_all_of_the_family_are_here():
    assert set(NAMES) <= set(zoo.mixers.names())
