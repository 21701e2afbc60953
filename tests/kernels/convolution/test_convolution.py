"""The short convolution: every backend computes the definition, packed, ragged, in pieces, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.convolution_oracle import convolve
from tests.kernels.linear_oracle import make_documents
from zoo_kernels import BackendError, short_convolution
from zoo_kernels.convolution import torch_ops as custom
from zoo_kernels.convolution.arguments import ConvolutionArguments, ConvolutionUpstream

pytestmark = pytest.mark.usefixtures("poisoned")
every_backend = pytest.mark.parametrize("backend", ["torch", "reference"])
DOCUMENTS = {"none": None, "documents": make_documents([[1, 2, 1, 5, 11], [3, 17]])}
every_document = pytest.mark.parametrize("documents", DOCUMENTS.values(), ids=DOCUMENTS.keys())


def draw(length=20, taps=4, dtype=torch.float64):
    shapes = (2, length, 3), (3, taps), (3,), (2, taps - 1, 3)
    return [torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in shapes]


@every_backend
@every_document
@pytest.mark.parametrize("taps", [1, 2, 4, 7])
@pytest.mark.parametrize("bare", [False, True])
def test_equals_the_definition_with_gradients(bare, taps, documents, backend):
    x, weight, bias, initial = draw(taps=taps)
    others = {} if bare else {"bias": bias, "initial": initial}
    leaves = [x, weight, *others.values()]
    o, none = short_convolution(x, weight, **others, documents=documents, backend=backend)
    want = convolve(x, weight, **others, documents=documents)
    upstream = torch.randn_like(want)
    assert none is None
    torch.testing.assert_close(o, want)
    torch.testing.assert_close(*(torch.autograd.grad(y, leaves, upstream, materialize_grads=True) for y in (o, want)))


def test_blocks_equal_the_whole(monkeypatch):
    monkeypatch.setattr(custom, "CACHE_ELEMENTS", 1)
    x, weight, bias, initial = draw(70)
    for documents in (None, make_documents([[15, 1, 16, 38], [31, 1, 38]])):
        o, _ = short_convolution(x, weight, bias=bias, initial=initial, documents=documents)
        want = convolve(x, weight, bias, initial, documents)
        upstream, leaves = torch.randn_like(want), (x, weight, bias, initial)
        torch.testing.assert_close(o, want)
        torch.testing.assert_close(*(torch.autograd.grad(y, leaves, upstream) for y in (o, want)))


@every_backend
@pytest.mark.parametrize("cuts", [(1, 1, 1, 1, 16), (2, 1, 3, 14), (0, 5, 0, 15), (19, 1), (10, 10)], ids=str)
def test_any_pieces_equal_the_whole_with_gradients(cuts, backend):
    x, weight, bias, initial = draw()
    outputs, state = [], initial
    for piece in x.split(cuts, 1):
        o, state = short_convolution(piece, weight, bias=bias, initial=state, return_state=True, backend=backend)
        outputs.append(o)
    want, upstream = convolve(x, weight, bias, initial), torch.randn_like(x)
    leaves = x, weight, bias, initial
    torch.testing.assert_close(torch.cat(outputs, 1), want)
    torch.testing.assert_close(
        torch.autograd.grad(torch.cat(outputs, 1), leaves, upstream, retain_graph=True),
        torch.autograd.grad(want, leaves, upstream),
    )
    assert torch.equal(state, x[:, -3:])
    (of_x,) = torch.autograd.grad(state.sum(), x)
    assert torch.equal(of_x, (torch.arange(20) >= 17)[:, None].expand(x.shape).double())


@every_backend
def test_what_a_piece_returns_is_of_the_document_that_goes_on(backend):
    x, weight, _, initial = draw()
    documents = DOCUMENTS["documents"]
    for cut in range(1, 20):
        how = {"backend": backend, "return_state": True}
        first, state = short_convolution(x[:, :cut], weight, initial=initial, documents=documents[:, :cut], **how)
        rest, _ = short_convolution(x[:, cut:], weight, initial=state, documents=documents[:, cut:], **how)
        goes_on = (documents[:, cut] == documents[:, cut - 1])[:, None, None]
        whole = convolve(x, weight, None, initial, documents)
        fresh = short_convolution(x[:, cut:], weight, documents=documents[:, cut:])[0]
        torch.testing.assert_close(first, whole[:, :cut])
        torch.testing.assert_close(torch.where(goes_on, rest, fresh), whole[:, cut:])


@every_backend
@pytest.mark.parametrize("fill", [torch.nan, torch.inf, 3e38])
def test_ragged_rows_equal_each_alone_whatever_lies_behind(fill, backend):
    x, weight, bias, initial = draw(6)
    weight_alone = weight.detach().clone().requires_grad_()
    for lengths in ([0, 6], [1, 2], [3, 5]):
        dirty = x.detach().clone()
        for row, n in enumerate(lengths):
            dirty[row, n:] = fill
        how = {"bias": bias, "return_state": True, "backend": backend}
        o, state = short_convolution(dirty, weight, initial=initial, lengths=torch.tensor(lengths), **how)
        mine, alone = [], []
        for row, n in enumerate(lengths):
            want, last = short_convolution(x[row : row + 1, :n], weight_alone, initial=initial[row : row + 1], **how)
            torch.testing.assert_close(o[row : row + 1, :n], want)
            assert torch.equal(state[row : row + 1], last)
            mine.append(o[row, :n].square().sum())
            alone.append(want.square().sum())
        got, want = (torch.autograd.grad(sum(y), w)[0] for y, w in ((mine, weight), (alone, weight_alone)))
        torch.testing.assert_close(got, want)


def test_ragged_rows_of_documents_keep_the_last_document():
    x, weight, _, initial = draw(6)
    documents = make_documents([[2, 4], [5, 1]])
    for lengths in ([3, 6], [2, 5], [0, 1]):
        how = {"initial": initial, "return_state": True}
        _, state = short_convolution(x, weight, documents=documents, lengths=torch.tensor(lengths), **how)
        for row, n in enumerate(lengths):
            one = slice(row, row + 1)
            how = {"initial": initial[one], "return_state": True, "documents": documents[one, :n]}
            assert torch.equal(state[one], short_convolution(x[one, :n], weight, **how)[1])


@pytest.mark.parametrize("documents", [None, DOCUMENTS["documents"]], ids=["none", "documents"])
def test_what_comes_later_and_other_documents_change_nothing_not_one_bit(documents):
    x, weight, bias, initial = (a.float().detach() for a in draw())
    changed = x.clone()
    changed[:, 9:] = 1e6
    before, after = (short_convolution(y, weight, bias=bias, documents=documents)[0] for y in (x, changed))
    assert torch.equal(before[:, :9], after[:, :9])
    if documents is not None:
        changed[1], changed[1, :3] = x[1], 1e6
        other = short_convolution(changed, weight, bias=bias, initial=1e6 + initial, documents=documents)[0]
        assert torch.equal(before[1, 3:], other[1, 3:])


@every_document
def test_gradients_equal_finite_differences(documents):
    leaves = draw(6)
    ids = None if documents is None else documents[:, :6]

    def run(x, weight, bias, initial):
        return short_convolution(x, weight, bias=bias, initial=initial, documents=ids, return_state=True)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sums_are_in_fp32_and_results_in_the_dtype_of_x(dtype):
    x, *others = (a.detach().to(dtype) for a in draw())
    o, state = short_convolution(x, others[0].float(), bias=others[1], initial=others[2], return_state=True)
    want = convolve(x.double(), *(a.double() for a in others))
    assert o.dtype == state.dtype == dtype
    assert (o.double() - want).abs().max() <= torch.finfo(dtype).eps * want.abs().max()


@pytest.mark.parametrize("full", [False, True])
def test_opcheck(full):
    x, weight, bias, initial = draw(dtype=torch.float32)
    given = ConvolutionArguments(x, weight, None, None, None, None, "torch")
    if full:
        lengths = torch.tensor([3, 20])
        given = ConvolutionArguments(x, weight, bias, initial, DOCUMENTS["documents"], lengths, "torch")
    torch.library.opcheck(custom.convolution_forward.op, tuple(given))
    saved = ConvolutionArguments(*(a.detach() if isinstance(a, torch.Tensor) else a for a in given))
    torch.library.opcheck(custom.convolution_backward.op, (*saved, *ConvolutionUpstream(torch.randn(x.shape))))


@every_backend
@every_document
def test_compiled_in_one_graph_equals_eager(documents, backend):
    torch._dynamo.reset()
    leaves, results = draw(), []
    for function in (short_convolution, torch.compile(short_convolution, backend="aot_eager", fullgraph=True)):
        how = {"bias": leaves[2], "initial": leaves[3], "documents": documents, "backend": backend}
        o, state = function(*leaves[:2], **how, return_state=True)
        results.append([o, state, *torch.autograd.grad(o.square().sum() + state.sum(), leaves)])
    torch.testing.assert_close(*results)


def test_flops_are_those_of_its_taps():
    x, weight, _, _ = draw()
    with FlopCounterMode(display=False) as counter:
        o, _ = short_convolution(x, weight)
    assert counter.get_total_flops() == 2 * 2 * 20 * 3 * 4
    with FlopCounterMode(display=False) as counter:
        o.sum().backward()
    assert counter.get_total_flops() == 4 * 2 * 20 * 3 * 4


@every_backend
@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_arrays_with_nothing_in_them(shape, backend):
    x = torch.randn(shape, requires_grad=True)
    initial = torch.randn(shape[0], 3, shape[2])
    o, state = short_convolution(x, torch.randn(shape[2], 4), initial=initial, return_state=True, backend=backend)
    assert o.shape == x.shape and state.shape == initial.shape
    if not shape[1]:
        assert torch.equal(state, initial)
    assert torch.autograd.grad(o.sum(), x)[0].shape == x.shape


X, W = torch.zeros(2, 5, 3), torch.zeros(3, 4)


@every_backend
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"expected x \(B, T, C\) and weight \(C, K\), got \(5, 3\) and \(3, 4\)"),
        ({"weight": W[:, :0]}, r"expected x \(B, T, C\) and weight \(C, K\)"),
        ({"weight": W[:2]}, r"weight has shape \(2, 4\), expected \(3, 4\)"),
        ({"weight": W.long()}, "weight is torch.int64, expected float16"),
        ({"bias": W}, r"bias has shape \(3, 4\), expected \(3,\)"),
        ({"initial": X}, r"initial has shape \(2, 5, 3\), expected \(2, 3, 3\)"),
        ({"documents": X[..., 0]}, "documents is torch.float32, expected integers"),
        ({"lengths": torch.zeros(3).long()}, r"lengths has shape \(3,\), expected \(2,\)"),
        ({"lengths": [1, 2]}, "lengths is a list, expected a torch.Tensor of integers"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message, backend):
    with pytest.raises(ValueError, match=f"^{message}") as refused:
        short_convolution(**({"x": X, "weight": W} | change), backend=backend)
    assert "\n" not in str(refused.value)


def test_a_type_that_the_kernels_do_not_take_is_refused():
    pytest.importorskip("triton")
    with pytest.raises(BackendError, match=r"^backend='triton' cannot run short convolution here: .*torch.float64"):
        short_convolution(X.double(), W.double(), backend="triton")


def test_transforms_of_functions_are_refused():
    with pytest.raises(NotImplementedError, match=r"first derivatives by torch\.autograd only"):
        torch.func.grad(lambda x: short_convolution(x, W)[0].sum())(X)
