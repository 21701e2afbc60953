"""Linear attention token by token in fp64, and cases to compare it with; shares nothing with the code under test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.kernels import delta_oracle
from zoo.mixers.parts.costs import CHUNK
from zoo_kernels import NormalizedState, linear_attention
from zoo_kernels.linear.arguments import LinearArguments

GRADIENTS = ("q", "k", "v", "log_decay", "state")


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None = None,
    documents: Tensor | None = None,
    normalizer: Tensor | None = None,
    normalize: bool = False,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, last state and last normalizer by the definition; a new document starts from zero."""
    batch, length, heads, width = q.shape
    s = q.new_zeros(batch, heads, width, v.shape[-1]) if state is None else state
    z = q.new_zeros(batch, heads, width) if normalizer is None else normalizer
    outputs = []
    for t in range(length):
        if documents is not None and t > 0:
            same = (documents[:, t] == documents[:, t - 1]).to(q.dtype)
            s, z = s * same[:, None, None, None], z * same[:, None, None]
        if log_decay is not None:
            decay = (log_decay if log_decay.dim() == 1 else log_decay[:, t]).exp().expand(batch, heads)
            s, z = s * decay[..., None, None], z * decay[..., None]
        s = s + k[:, t, :, :, None] * v[:, t, :, None, :]
        z = z + k[:, t]
        o = (q[:, t, :, :, None] * s).sum(-2)
        if normalize:
            den = (q[:, t] * z).sum(-1, keepdim=True)
            o = o / torch.where(den < 0, den.clamp(max=-eps), den.clamp(min=eps))
        outputs.append(o)
    o = torch.stack(outputs, 1) if outputs else q.new_zeros(batch, 0, heads, v.shape[-1])
    return o, s, z


def decay(kind: str, batch: int, length: int, heads: int) -> Tensor | None:
    """Log decays of one of the conventions that the kernels must serve, in fp64."""
    index = torch.arange(heads, dtype=torch.float64)
    per_head = {
        "none": None,
        "zero": 0 * index,
        "alibi": -(2 ** (-8 * (index + 1) / heads)),
        "paper": -7 * index / max(heads - 1, 1),
        "strong": 0 * index - 20,
    }
    if kind in per_head:
        return per_head[kind]
    drawn = -20 * torch.rand(batch, length, heads, dtype=torch.float64) ** 4
    return drawn if kind == "token" else drawn / 20


DECAYS = ("none", "zero", "alibi", "paper", "strong", "token", "soft_token")


@dataclass
class Case:
    """Inputs and upstream gradients of one comparison."""

    inputs: dict[str, Tensor | None]
    grad_output: Tensor
    grad_state: Tensor
    documents: Tensor | None = None

    def leaves(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        made = {}
        for name, x in self.inputs.items():
            wide = torch.promote_types(dtype, torch.float32) if name in ("log_decay", "state") else dtype
            made[name] = None if x is None else x.detach().to(wide).requires_grad_()
        return made

    def gradients(self, leaves: dict[str, Any], output: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Output, state and the gradients of every input, for the fixed upstream gradients."""
        total = (output * self.grad_output.to(output.dtype)).sum() + (state * self.grad_state.to(state.dtype)).sum()
        wanted = {name: x for name, x in leaves.items() if x is not None}
        found = dict(zip(wanted, torch.autograd.grad(total, list(wanted.values()))))
        return {"output": output.detach(), "final": state.detach(), **{f"grad {n}": g for n, g in found.items()}}

    def expected(self) -> dict[str, Tensor]:
        x = self.leaves()
        o, s, _ = recurrence(x["q"], x["k"], x["v"], x["log_decay"], x["state"], self.documents)
        return self.gradients(x, o, s)

    def measured(self, dtype: torch.dtype = torch.float64, **options: Any) -> dict[str, Tensor]:
        x = self.leaves(dtype)
        o, s = linear_attention(
            x["q"],
            x["k"],
            x["v"],
            x["log_decay"],
            initial_state=x["state"],
            return_state=True,
            documents=self.documents,
            **options,
        )
        assert s is not None and not isinstance(s, NormalizedState)
        return self.gradients(x, o, s)


def make_case(
    length: int, kind: str, *, batch: int = 2, heads: int = 3, width: int = 16, value: int = 24, seed: int = 0
) -> Case:
    """A case with D != E, more than one head and a state before token 0."""
    torch.manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    inputs = {
        "q": draw(batch, length, heads, width),
        "k": draw(batch, length, heads, width),
        "v": draw(batch, length, heads, value),
        "log_decay": decay(kind, batch, length, heads),
        "state": draw(batch, heads, width, value),
    }
    return Case(inputs, draw(batch, length, heads, value), draw(batch, heads, width, value))


def make_documents(rows: list[list[int]]) -> Tensor:
    """Ids from the lengths of the documents of each row; ids are neither sorted nor dense."""
    return torch.stack(
        [torch.cat([torch.full((n,), (7 * i + 3) % 11) for i, n in enumerate(lengths)]) for lengths in rows]
    )


def assert_all_close(measured: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    """Every entry equal within ``tolerance`` times the larger of 1 and its largest expected number."""
    assert measured.keys() == expected.keys()
    for name, want in expected.items():
        got = measured[name]
        assert got.shape == want.shape, name
        if want.numel() == 0:
            continue
        assert torch.isfinite(got).all(), name
        error, size = (got - want).abs().max().item(), max(want.abs().max().item(), 1.0)
        assert error <= tolerance * size, f"{name}: error {error:.1e} for numbers up to {size:.1e}"


def eager(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """The quadratic formula with every product and sum in ``dtype``: what plain code would lose."""
    x = case.leaves(dtype)
    total = x["log_decay"].expand(*x["q"].shape[:3]).cumsum(1).transpose(1, 2)
    lower = torch.ones(total.shape[-1], total.shape[-1], dtype=torch.bool).tril()
    assert total.dtype == torch.promote_types(dtype, torch.float32)
    mask = (total[..., :, None] - total[..., None, :]).masked_fill(~lower, -torch.inf).exp().to(dtype)
    q, k, v = (x[n].transpose(1, 2) for n in ("q", "k", "v"))
    state = x["state"].to(dtype)
    o = ((q @ k.mT) * mask) @ v + (q * total.exp().to(dtype)[..., None]) @ state
    left = (total[..., -1:] - total).exp().to(dtype)
    final = (k * left[..., None]).mT @ v + state * total[..., -1].exp().to(dtype)[..., None, None]
    return case.gradients(x, o.transpose(1, 2), final)


def low_precision(case: Case, dtype: torch.dtype) -> Case:
    """The case with numbers that ``dtype`` can hold, so that only the computation can be wrong."""
    inputs = {n: x.to(dtype).double() if n in "qkv" else x.float().double() for n, x in case.inputs.items()}
    return Case(inputs, case.grad_output.to(dtype).double(), case.grad_state.float().double())


def blocks(x: Tensor) -> list[Tensor]:
    """Parts of an array for which the error must be small on its own: heads, and 64 tokens of them."""
    if x.dim() == 4 and x.shape[2] == 3:  # (B, T, H, X)
        return [part[:, :, h] for part in x.tensor_split(max(x.shape[1] // 64, 1), 1) for h in range(3)]
    return [x[:, h] for h in range(3)]  # (B, H, D, E)


@cache
def solved(
    length: int, kind: str, dtype: torch.dtype, width: int, value: int
) -> tuple[Case, dict[str, Tensor], dict[str, Tensor], Tensor]:
    """The case, its exact and its plain solution, and the size of the decay's gradient.

    The gradient of one decay per head is a sum over tokens: its size is that of its terms.
    """
    case = low_precision(make_case(length, kind, batch=1, width=width, value=value), dtype)
    every_token = case.inputs["log_decay"].expand(1, length, 3)
    of_tokens = Case(case.inputs | {"log_decay": every_token}, case.grad_output, case.grad_state).expected()
    terms = of_tokens.pop("grad log_decay")
    exact = of_tokens | {"grad log_decay": terms if case.inputs["log_decay"].dim() == 3 else terms.sum((0, 1))}
    size = terms.abs().amax((0, 1)) if case.inputs["log_decay"].dim() == 3 else terms.abs().sum((0, 1))
    return case, exact, eager(case, dtype), size


def assert_contract(
    length: int, kind: str, dtype: torch.dtype, width: int = 16, value: int = 24, **options: Any
) -> None:
    """Every output and gradient is, in each head and block, at most twice as wrong as plain code in ``dtype``."""
    case, exact, plain, size = solved(length, kind, dtype, width, value)
    ours = case.measured(dtype, **options)
    eps = torch.finfo(dtype).eps
    for name in ("output", "final", "grad q", "grad k", "grad v", "grad state"):
        assert torch.isfinite(ours[name]).all(), name
        for want, base, got in zip(*(blocks(x[name].double()) for x in (exact, plain, ours))):
            allowed = 2 * ((base - want).abs().max() + eps * want.abs().max())
            assert (got - want).abs().max() <= allowed, name
    if length == 1:  # one number per head: the plain error is one draw, no bound
        return
    want, base, got = (x["grad log_decay"].double().reshape(-1, 3) for x in (exact, plain, ours))
    assert ((got - want).abs().amax(0) <= 2 * ((base - want).abs().amax(0) + eps * size)).all()


def needed_flops(counted: int, calls: list[Any]) -> int:
    """FLOPs of calls of the op, without the pairs above the diagonal of each chunk, one for all if ``parallel``."""
    for x in (LinearArguments(*call) for call in calls):
        if x.log_decay is not None and x.log_decay.dim() == 4:  # what delta attention is without erase
            arrays = x.q, x.k, x.v, x.log_decay, None, None, None, x.state, x.documents
            counted = delta_oracle.needed_flops(counted, [(*arrays, x.scale, x.backend)])
            continue
        batch, length, heads, width = x.q.shape
        chunks = [length] if x.algorithm == "parallel" else [CHUNK] * (length // CHUNK) + [length % CHUNK]
        masked = batch * heads * sum(c**2 - c * (c + 1) // 2 for c in chunks)
        counted -= masked * 2 * (width + x.v.shape[-1])
    return counted
