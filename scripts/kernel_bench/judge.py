"""The contract of correctness: an error of at most twice (that of plain low precision + eps * max) in every block."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernel_bench.bench import CHECK, Bench, Row, Shape

BLOCK = 64  # tokens that share an allowance, with their head

Found = dict[str, Tensor]  # outputs and gradients by name


class Worst(NamedTuple):
    """The largest error over its allowance, and where it is."""

    ratio: float
    place: str


def judge(bench: Bench, name: str, shape: Shape, dtype: torch.dtype, got: Found, plain: Found, truth: Found) -> None:
    """Record the worst block of the outputs and that of the gradients; an excess is an error too."""
    for direction, gradients in (("forward", False), ("backward", True)):
        worst = [
            _worst(tensor, plain[key], truth[key], torch.finfo(dtype).eps, key)
            for key, tensor in got.items()
            if key.startswith("grad") == gradients and truth[key].numel()
        ]
        if not worst:
            continue
        ratio, place = max(worst)
        if ratio > 1:
            bench.fail(f"{name}, {direction}", f"{ratio:.3g} times the allowance at {place}")
        bench.add(Row(name, shape, dtype, "ours", direction), CHECK, min(ratio, 1e9), "", "<= 1")


def batch_of(bench: Bench, length: int) -> int:
    """Batch rows of a case: more for short ones, whose blocks hold too few numbers for a fair allowance."""
    return 1 if bench.dry else 2 if length >= 63 else 16


def _worst(got: Tensor, plain: Tensor, truth: Tensor, eps: float, key: str) -> Worst:
    if got.shape != truth.shape:
        return Worst(1e9, f"{key}: shape {tuple(got.shape)}, expected {tuple(truth.shape)}")
    got, plain, truth = (x.detach().double() for x in (got, plain, truth))
    if key == "lse":  # -inf where there is no key, in both
        if not torch.equal(got == -torch.inf, truth == -torch.inf):
            return Worst(1e9, "lse: -inf in other places than expected")
        got, plain, truth = (x.masked_fill(truth == -torch.inf, 0.0) for x in (got, plain, truth))
    if not got.isfinite().all():
        return Worst(1e9, f"{key}: not finite")
    plain = plain.nan_to_num(0.0, 0.0, 0.0)
    if "state" in key:  # (B, H, D, E) -> (B, D, H, E)
        got, plain, truth = (x.transpose(1, 2) for x in (got, plain, truth))
    allowance = 2 * (_blocks((plain - truth).abs()) + eps * _blocks(truth.abs()))
    error = _blocks((got - truth).abs())
    ratio = torch.where(error == 0, 0.0, error / allowance.clamp(min=1e-30))
    index = int(ratio.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(index), ratio.shape)]
    return Worst(float(ratio.flatten()[index].clamp(max=1e9)), f"{key} {place}")


def _blocks(x: Tensor) -> Tensor:
    """Maxima by block of tokens and head of ``(B, T, H[, X])``; of smaller arrays, the maximum."""
    if x.dim() < 3:
        return x.amax().reshape(1)
    x = x.reshape(*x.shape[:3], -1).amax(-1)
    length = x.shape[1]
    padded = torch.nn.functional.pad(x, (0, 0, 0, -length % BLOCK))
    return padded.unflatten(1, (-1, BLOCK)).amax((0, 2))
