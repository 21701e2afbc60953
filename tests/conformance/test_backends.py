"""Every mixer gives the same with every backend of its kernels.

Triton runs in its interpreter here. What its kernels have no tiles for is refused by name, and such a call must be one
that the message describes; the mixer then runs on the PyTorch form, which the other tests cover. Heads that are too
wide in fp32 are compared in fp16, a bias of blocks that refuses documents without them.
"""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
import torch

from tests.conformance.cases import CASES, HEADS, draw, every_name, make, options_alone, with_slow_shapes_alone
from tests.tiers import in_ci
from zoo_kernels import BackendError, use_backend

TOO_WIDE = "wide, and the kernels take up to"
BIAS = "block_bias over packed documents"
LIMITS = f"{TOO_WIDE}|{BIAS}|are of different types"
OF_HALF = 2**-6  # of the norm: the whole mixer rounds to fp16 then
SCALE = 64.0  # of the loss, so that gradients are numbers that fp16 has
SHORT, LONG = 18, 50  # two tiles of the kernels; several blocks and windows of the variants, and of their caches


def length_of(options):
    """Tokens of one row: the interpreter is slow. Batches are tested on the kernels themselves, and by ``decoded``."""
    return LONG if options else SHORT


def small(name, options, dtype):
    """Of two heads, which suffice to tell heads apart, unless the options say how many there are."""
    return make(name, options, heads=HEADS if options else 2).to(dtype)


def results(name, options, backend, documents, dtype=torch.float32):
    """Output and gradients of the inputs and the parameters."""
    mixer, x = small(name, options, dtype), draw(1, length_of(options), torch.float32).to(dtype).requires_grad_()
    with use_backend(backend):
        y = mixer(x, documents=documents)
        wanted = [x, *(p for p in mixer.parameters() if p.requires_grad)]
        return [y, *torch.autograd.grad(y.float().square().mean() * SCALE, wanted)]


def decoded(name, options, backend, _, dtype=torch.float32):
    """Outputs of a ragged prompt, a piece and single tokens through a cache."""
    mixer, length = small(name, options, dtype), length_of(options)
    cache, x = mixer.new_cache(2, dtype=dtype), draw(2, length + 5, torch.float32).to(dtype)
    lengths = torch.tensor([length, length - 9])
    with use_backend(backend), torch.no_grad():
        first = mixer(x[:, :length], cache=cache, lengths=lengths)
        first = first.masked_fill(torch.arange(length)[None, :, None] >= lengths[:, None, None], 0)
        return [first, *(mixer(piece, cache=cache) for piece in x[:, length:].split([1, 3, 1], 1))]


@pytest.mark.sampled(3)
@with_slow_shapes_alone
@pytest.mark.parametrize("how", ["packed", *in_ci("plain", "cached")])
def test_every_backend_gives_the_same(name, options, how):
    compare(name, options, how)


@pytest.mark.sampled(3)
@options_alone
def test_every_backend_gives_the_same_with_other_numbers(name, options):
    compare(name, options, "packed")


def compare(name, options, how):
    """The reference, and Triton where it takes the options, against the PyTorch form."""
    run = decoded if how == "cached" else results
    documents = torch.arange(length_of(options))[None] // (20 if options else 11) if how == "packed" else None
    want = run(name, options, "torch", documents)
    for backend in ("reference", "triton"):
        torch.manual_seed(0)
        tolerance = 1e-3
        try:
            got = run(name, options, backend, documents)
        except BackendError as error:
            assert backend == "triton"
            assert re.search(LIMITS, str(error))
            if BIAS in str(error):
                return compare(name, options, "plain")
            if TOO_WIDE not in str(error):
                continue
            torch.manual_seed(0)
            got, tolerance = run(name, options, backend, documents, torch.float16), OF_HALF
        for ours, theirs in zip(got, want):
            assert torch.isfinite(ours).all()
            assert (ours.float() - theirs).norm() <= tolerance * theirs.norm() + 1e-6


@pytest.mark.slow
@every_name
def test_triton_takes_some_options_of_every_mixer(name):
    """So that the test above compares something with it."""
    taken, x = 0, draw(1, 20, torch.float32)
    for options in (options for other, options in CASES if other == name):
        with use_backend("triton"), torch.no_grad(), suppress(BackendError):
            taken += make(name, options).float()(x).shape == x.shape
        if taken:
            return
    raise AssertionError(f"{name}: Triton refused all of its options")


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with (
        pytest.raises(BackendError, match="backend='trition' does not exist: expected auto, triton"),
        use_backend("trition"),
    ):
        pass
