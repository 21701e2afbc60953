"""Muon (Jordan et al. 2024): momentum whose update of a matrix is orthogonalized, with AdamW for other parameters.

The update of an m x n matrix is scaled by 0.2 * sqrt(max(m, n)) (Liu et al. 2025, arXiv:2502.16982), so that its root
mean square is that of AdamW and learning rates carry over.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-8


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximates the nearest semi-orthogonal matrices by a quintic Newton-Schulz iteration.

    Singular values end in 0.7..1.2. Works in bfloat16 on CUDA and in the given precision elsewhere; ``(n, rows,
    columns)`` in and out.
    """
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Optimizer that follows Muon in groups of matrices with ``muon=True``, and AdamW in groups with ``muon=False``.

    A Muon group has ``lr``, ``momentum``, ``weight_decay``; an AdamW group ``lr``, ``betas``, ``weight_decay``.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(
            groups, {"lr": 0.0, "muon": False, "weight_decay": 0.0, "momentum": 0.95, "betas": (0.9, 0.95)}
        )
        for group in self.param_groups:
            if group["muon"] and any(p.dim() != 2 for p in group["params"]):
                raise ValueError("Muon takes whole matrices: with sharded or flattened parameters use optimizer=adamw.")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Updates the parameters of all groups; returns the loss of ``closure``, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            (self._muon if group["muon"] else self._adamw)(group)
        return loss

    def _muon(self, group: dict[str, Any]) -> None:
        by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                by_shape[tuple(p.shape)].append(p)
        for (rows, columns), parameters in by_shape.items():
            updates = orthogonalize(torch.stack([self._nesterov(p, group["momentum"]) for p in parameters]))
            size = -group["lr"] * 0.2 * max(rows, columns) ** 0.5
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, list(updates.unbind()), alpha=size)

    def _nesterov(self, p: Tensor, momentum: float) -> Tensor:
        assert p.grad is not None
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["momentum"], momentum)

    def _adamw(self, group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if "step" not in state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
            state["step"] += 1
            step = state["step"].item()
            state["mean"].lerp_(p.grad, 1 - beta1)
            state["square"].lerp_(p.grad.square(), 1 - beta2)
            p.mul_(1 - group["lr"] * group["weight_decay"])
            scale = (state["square"] / (1 - beta2**step)).sqrt_().add_(EPS)
            p.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - beta1**step))
