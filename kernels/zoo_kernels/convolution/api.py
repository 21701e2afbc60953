"""The short convolution: the public function and its checks."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_kernels.backend import without_autocast
from zoo_kernels.checks import check_arrays, check_devices, check_integers, check_shape
from zoo_kernels.convolution.arguments import ConvolutionArguments
from zoo_kernels.convolution.torch_ops import convolution_forward


@without_autocast
def short_convolution(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    initial: Tensor | None = None,
    documents: Tensor | None = None,
    lengths: Tensor | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Causal convolution of each channel over its last K tokens: ``y_t = bias + sum_j weight[:, K - 1 - j] x_{t - j}``.

    Args:
        x: ``(B, T, C)``; sums are in fp32 or better.
        weight: ``(C, K)``; ``weight[:, K - 1]`` multiplies the token itself.
        bias: ``(C,)``.
        initial: ``(B, K - 1, C)``, the inputs before token 0, oldest first; zeros by default. They belong to the
            document of token 0.
        documents: ``(B, T)`` integer ids of packed documents, each contiguous; nothing crosses a boundary but NaN and
            inf, which may reach other documents of their row and never another row.
        lengths: ``(B,)`` true lengths of right-padded rows; what lies behind may hold anything, and outputs there are
            unspecified.
        return_state: also give the inputs that the next piece needs as ``initial``.
        backend: ``auto``, ``triton``, ``torch`` or ``reference``.

    Returns:
        Output ``(B, T, C)`` and, if ``return_state``, the last K - 1 inputs of each row ``(B, K - 1, C)``, oldest
        first, else None; both in the dtype of x. Inputs of other documents than the row's last are zeros.

    Raises:
        ValueError: on shapes, types or a backend that do not fit.
        NotImplementedError: in forward mode and inside torch.func's transforms.

    Examples:
        >>> x, weight = torch.randn(1, 10, 8), torch.randn(8, 4)
        >>> y, state = short_convolution(x[:, :6], weight, return_state=True)
        >>> z, _ = short_convolution(x[:, 6:], weight, initial=state)
        >>> torch.allclose(torch.cat([y, z], 1), short_convolution(x, weight)[0], atol=1e-6)
        True
    """
    _check(x, weight, bias, initial, documents, lengths)
    chosen = convolution_forward.enter(backend, x, others=(weight, bias, initial))
    y = convolution_forward(ConvolutionArguments(x, weight, bias, initial, documents, lengths, chosen))
    return y, _state(x, weight.shape[1] - 1, initial, documents, lengths) if return_state else None


def _state(x: Tensor, reach: int, initial: Tensor | None, documents: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The last ``reach`` inputs of each row, of those before it where the row is shorter."""
    batch, length, channels = x.shape
    before = x.new_zeros(batch, reach, channels) if initial is None else initial.to(x.dtype)
    if not length or not reach:
        return before.clone()
    if lengths is None and documents is None:
        return x[:, -reach:].clone() if length >= reach else torch.cat([before[:, length:], x], 1)
    ends = torch.full((batch,), length, device=x.device) if lengths is None else lengths.long()
    place = ends[:, None] + torch.arange(-reach, 0, device=x.device)  # in x, below 0 in what was before
    inside = place.clamp(min=0)
    rows = torch.arange(batch, device=x.device)[:, None]
    kept = torch.where((place >= 0)[..., None], x[rows, inside], before[rows, (place + reach).clamp(max=reach - 1)])
    if documents is None:
        return kept
    same = documents.gather(1, inside) == documents.gather(1, (ends - 1).clamp(min=0)[:, None])
    return torch.where(same[..., None], kept, torch.zeros_like(kept))


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    documents: Tensor | None,
    lengths: Tensor | None,
) -> None:
    check_arrays(alike=False, x=x, weight=weight, bias=bias, initial=initial)
    if x.dim() != 3 or weight.dim() != 2 or not weight.shape[1]:
        raise ValueError(f"expected x (B, T, C) and weight (C, K), got {tuple(x.shape)} and {tuple(weight.shape)}.")
    batch, length, channels = x.shape
    for name, array, wanted in (
        ("weight", weight, (channels, weight.shape[1])),
        ("bias", bias, (channels,)),
        ("initial", initial, (batch, weight.shape[1] - 1, channels)),
    ):
        check_shape(name, array, wanted)
    for name, ids, shape in (("documents", documents, (batch, length)), ("lengths", lengths, (batch,))):
        if ids is not None:
            check_integers(name, ids, shape)
            check_devices(**{"x": x, name: ids})
