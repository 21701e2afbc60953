"""The short convolution's Triton kernels, in the interpreter: the definition in fp64 is the oracle."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.convolution_oracle import convolve
from tests.kernels.linear_oracle import make_documents
from tests.tiers import in_ci
from zoo_kernels import short_convolution
from zoo_kernels.convolution import torch_ops as custom
from zoo_kernels.convolution.arguments import ConvolutionArguments, ConvolutionUpstream
from zoo_kernels.convolution.triton.configs import TABLE
from zoo_kernels.launch import ARCHITECTURES, INTERPRETER, Config, record
from zoo_kernels.tools.aot import compile_keys

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned", "small_tiles")

NAMES = ("output", "x", "weight", "bias", "initial")
DOCUMENTS = {"none": None, "documents": make_documents([[1, 2, 1, 5, 11], [3, 17]])}
every_document = pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS.keys())


@pytest.fixture
def small_tiles(monkeypatch):
    """Several tiles of tokens and of channels, and several parts of the sums, at sizes for the interpreter."""
    tiles = {"convolution": {"TIME": 8, "TILE": 4}, "convolution_gradients": {"TIME": 4, "TILE": 4, "SPAN": 2}}
    for name, made in tiles.items():
        rows = {key: Config(made, 4, 1) for key in TABLE[name][INTERPRETER]}
        monkeypatch.setitem(TABLE, name, TABLE[name] | {INTERPRETER: rows})


def draw(length=20, taps=4, channels=6, batch=2):
    shapes = (batch, length, channels), (channels, taps), (channels,), (batch, taps - 1, channels)
    return [torch.randn(*shape) for shape in shapes]


def solve(function, arrays, dtype, upstream, bare=False, **options):
    """Output and gradients; what lies behind the lengths counts for nothing."""
    leaves = [x.to(dtype).requires_grad_() for x in arrays]
    x, weight, bias, initial = leaves
    others = {} if bare else {"bias": bias, "initial": initial}
    y = function(x, weight, **others, **options)
    wanted = leaves[: 2 if bare else 4]
    return dict(zip(NAMES, (y.detach(), *torch.autograd.grad(y, wanted, upstream.to(y.dtype)))))


def ours(*given, **options):
    return short_convolution(*given, **options, backend="triton")[0]


def check(length, taps, dtype, documents=None, bare=False, **sizes):
    arrays = [x.to(dtype).double() for x in draw(length, taps, **sizes)]
    documents = None if documents is None else documents[:, :length]
    upstream = torch.randn_like(arrays[0]).to(dtype).double()
    got = solve(ours, arrays, dtype, upstream, bare, documents=documents)
    want = solve(convolve, arrays, torch.float64, upstream, bare, documents=documents)
    for name, exact in want.items():
        assert got[name].dtype == dtype
        assert torch.isfinite(got[name]).all(), name
        if exact.numel():
            error, size = (got[name].double() - exact).abs().max(), max(exact.abs().max(), 1.0)
            summed = (
                upstream.abs().sum((0, 1)).max() if name in ("weight", "bias") else 0
            )  # in fp32, whatever the dtype
            assert error <= 2 * torch.finfo(dtype).eps * size + torch.finfo(torch.float32).eps * summed, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@every_document
@pytest.mark.parametrize(
    ("length", "taps"), [(17, 4), (1, 4), *in_ci((2, 4), (15, 2), (16, 7), (20, 1), (20, 2), (20, 7))]
)
def test_equals_the_definition_with_gradients(length, taps, documents, dtype):
    check(length, taps, dtype, documents)


@every_document
@pytest.mark.parametrize("length", [9, *in_ci(1, 20)])
def test_without_a_bias_and_carried_inputs(length, documents):
    check(length, 4, torch.float32, documents, bare=True)


@pytest.mark.slow
@pytest.mark.parametrize("length", [63, 64, 65])
@pytest.mark.parametrize("channels", [1, 3, 8, 13])
def test_any_number_of_channels(channels, length):
    check(length, 4, torch.float32, channels=channels, batch=1)


@pytest.mark.parametrize("fill", [torch.nan, *in_ci(torch.inf, 3e38)])
def test_ragged_rows_equal_each_alone_whatever_lies_behind(fill):
    arrays, lengths = draw(9), torch.tensor([0, 5])
    for lengths in ([0, 5], [2, 9]):
        dirty = arrays[0].clone()
        for row, n in enumerate(lengths):
            dirty[row, n:] = fill
        inside = (torch.arange(9) < torch.tensor(lengths)[:, None])[..., None]
        upstream = torch.randn(2, 9, 6) * inside
        got = solve(ours, [dirty, *arrays[1:]], torch.float32, upstream, lengths=torch.tensor(lengths))
        clean = [torch.where(inside, arrays[0], 0.0), *arrays[1:]]
        want = solve(convolve, clean, torch.float64, upstream)
        got["output"], want["output"] = (x["output"].where(inside, 0.0) for x in (got, want))
        for name, exact in want.items():
            torch.testing.assert_close(got[name].double(), exact, rtol=1e-5, atol=1e-5, msg=name)


def test_any_pieces_equal_the_whole_with_gradients():
    """One token at a time too: a step of decoding is a piece of one token."""
    arrays, upstream = draw(9), torch.randn(2, 9, 6)

    def in_pieces(x, weight, bias, initial):
        outputs, state = [], initial
        for piece in x.split([1, 1, 2, 5], 1):
            o, state = short_convolution(
                piece, weight, bias=bias, initial=state, return_state=True, backend="triton"
            )  # fmt: skip
            outputs.append(o)
        return torch.cat(outputs, 1)

    got, want = solve(in_pieces, arrays, torch.float32, upstream), solve(convolve, arrays, torch.float64, upstream)
    for name, exact in want.items():
        torch.testing.assert_close(got[name].double(), exact, rtol=1e-5, atol=1e-5, msg=name)


@every_document
def test_what_comes_later_and_other_documents_change_nothing_not_one_bit(documents):
    x, weight, bias, initial = draw()
    changed = x.clone()
    changed[:, 9:] = 1e6
    before, after = (ours(y, weight, bias=bias, documents=documents) for y in (x, changed))
    assert torch.equal(before[:, :9], after[:, :9])
    if documents is not None:
        changed[1], changed[1, :3] = x[1], 1e6
        other = ours(changed, weight, bias=bias, initial=1e6 + initial, documents=documents)
        assert torch.equal(before[1, 3:], other[1, 3:])


def test_types_that_differ_and_arrays_with_strides():
    x, weight, bias, initial = draw(9)
    wide = torch.cat([x, x], -1).half()[..., 6:].requires_grad_()
    how = {"bias": bias.half(), "initial": initial.mT.contiguous().mT}
    got = ours(wide, weight, **how)
    (of_x,) = torch.autograd.grad(got.sum(), wide)  # the gradient arrives with stride 0
    alike = x.half().requires_grad_()
    want = ours(alike, weight, bias=bias.half(), initial=initial)
    assert got.dtype == torch.float16 and torch.equal(got, want)
    assert torch.equal(of_x, torch.autograd.grad(want.sum(), alike)[0])


@pytest.mark.parametrize("full", [*in_ci(False), True])
def test_opcheck(full):
    x, weight, bias, initial = (a.requires_grad_() for a in draw(9))
    given = ConvolutionArguments(x, weight, None, None, None, None, "triton")
    if full:
        ids, lengths = DOCUMENTS["documents"][:, :9], torch.tensor([3, 9])
        given = ConvolutionArguments(x, weight, bias, initial, ids, lengths, "triton")
    torch.library.opcheck(custom.convolution_forward.op, tuple(given))
    saved = ConvolutionArguments(*(a.detach() if isinstance(a, torch.Tensor) else a for a in given))
    torch.library.opcheck(custom.convolution_backward.op, (*saved, *ConvolutionUpstream(torch.randn(x.shape))))


def launches(batch, length, architecture):
    """What a training pass over rows with everything would start on a GPU; nothing runs."""
    x, weight, bias, initial = (a.bfloat16().requires_grad_() for a in draw(length, 4, 96, batch))
    how = {"documents": torch.zeros(batch, length).long(), "lengths": torch.full((batch,), length)}
    with record(architecture) as found:
        ours(x, weight, bias=bias, initial=initial, **how).sum().backward()
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_and_length_compile_nothing_new(architecture):
    keys = [compile_keys(launches(b, t, architecture), architecture) for b, t in [(2, 512), (3, 1001), (1, 1), (16, 3)]]
    assert {name: len(found) for name, found in keys[0].items()} == {
        "convolution_kernel": 1,
        "convolution_gradients_kernel": 1,
    }
    assert all(k == keys[0] for k in keys[1:])
