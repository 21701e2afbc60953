"""Every mixer gives the same with every backend of its kernels.

Triton runs in its interpreter here. What its kernels have no tiles for is refused by name, and such a call must be one
that the message describes; the mixer then runs on the PyTorch form, which the other tests cover.
"""

from __future__ import annotations

import re

import pytest
import torch

from kernels import BackendError, use_backend
from tests.conformance.cases import draw, every_name, make

LIMITS = "wide, and the kernels take up to|block_bias over packed documents|are of different types"
LENGTH = 34


def results(name, backend, documents):
    """Output and gradients of the inputs and the parameters."""
    mixer, x = make(name).float(), draw(2, LENGTH, torch.float32).requires_grad_()
    with use_backend(backend):
        y = mixer(x, documents=documents)
        return [y, *torch.autograd.grad(y.square().mean(), [x, *mixer.parameters()])]


@every_name
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_every_backend_gives_the_same(name, packed):
    documents = (torch.arange(LENGTH) // 20).expand(2, LENGTH) if packed else None
    want = results(name, "torch", documents)
    for backend in ("reference", "triton"):
        try:
            got = results(name, backend, documents)
        except BackendError as error:
            assert backend == "triton"
            assert re.search(LIMITS, str(error))
            continue
        for ours, theirs in zip(got, want):
            assert torch.isfinite(ours).all()
            assert (ours - theirs).norm() <= 1e-3 * theirs.norm() + 1e-6


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with (
        pytest.raises(BackendError, match="backend='trition' does not exist: expected auto, triton"),
        use_backend("trition"),
    ):
        pass
