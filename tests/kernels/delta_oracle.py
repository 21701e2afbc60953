"""Delta attention token by token in fp64, and cases to compare it with; shares nothing with the code under test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels import delta_attention
from zoo_kernels.delta.arguments import DeltaArguments

CHUNK = 32
RULES = ("beta", "general", "plain")
DECAYS = ("none", "head", "token", "channel")


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    beta: Tensor | None = None,
    read: Tensor | None = None,
    erase: Tensor | None = None,
    documents: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Outputs and last state, with the matrices of the definition written out."""
    heads, width = v.shape[2], q.shape[3]
    q, k, read, erase = (x if x is None else x.repeat_interleave(heads // x.shape[2], 2) for x in (q, k, read, erase))
    if beta is not None:
        read, erase, v = k, beta[..., None] * k, beta[..., None] * v
    one, outputs, s = torch.eye(width, dtype=q.dtype), [], state
    for t in range(q.shape[1]):
        move = one
        if log_decay is not None:
            now = log_decay if log_decay.dim() == 1 else log_decay[:, t]
            move = torch.diag_embed((now if now.dim() == 3 else now[..., None].expand(*now.shape, width)).exp())
        if read is not None:
            move = (one - erase[:, t, :, :, None] @ read[:, t, :, None]) @ move
        if documents is not None and t > 0:
            move = move * (documents[:, t] == documents[:, t - 1])[:, None, None, None]
        s = move @ s + k[:, t, :, :, None] @ v[:, t, :, None]
        outputs.append(scale * (q[:, t, :, None] @ s)[:, :, 0])
    return torch.stack(outputs, 1) if outputs else v.new_zeros(v.shape), s


@dataclass
class Case:
    """Inputs and upstream gradients of one comparison."""

    inputs: dict[str, Tensor | None]
    grad_output: Tensor
    grad_state: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def leaves(self, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        wide = {name: torch.promote_types(dtype, torch.float32) for name in ("log_decay", "state")}
        return {
            name: None if x is None else x.detach().to(wide.get(name, dtype)).requires_grad_()
            for name, x in self.inputs.items()
        }

    def gradients(self, leaves: dict[str, Any], output: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Output, state and the gradients of every input, for the fixed upstream gradients."""
        total = (output * self.grad_output.to(output.dtype)).sum() + (state * self.grad_state.to(state.dtype)).sum()
        wanted = {name: x for name, x in leaves.items() if x is not None}
        found = dict(zip(wanted, torch.autograd.grad(total, list(wanted.values()))))
        return {"output": output.detach(), "final": state.detach(), **{f"grad {n}": g for n, g in found.items()}}

    def expected(self) -> dict[str, Tensor]:
        x = self.leaves()
        return self.gradients(x, *recurrence(**x, **self.options))

    def measured(self, dtype: torch.dtype = torch.float64, **options: Any) -> dict[str, Tensor]:
        x = self.leaves(dtype)
        return self.gradients(x, *run(x, **self.options, **options))


def run(x: dict[str, Any], **options: Any) -> tuple[Tensor, Tensor]:
    """The public function on the arrays of a case."""
    given = {("initial_state" if name == "state" else name): array for name, array in x.items()}
    return delta_attention(**given, return_state=True, **options)


def make_case(
    length: int,
    rule: str,
    decay: str,
    *,
    batch: int = 2,
    heads: int = 2,
    fold: int = 1,
    width: int = 6,
    value: int = 10,
    strength: float = 1.0,
    keys: Tensor | None = None,
    beta: float | None = None,
) -> Case:
    """A case with D != E, unit keys and a state before token 0.

    Args:
        fold: value heads of each key head; ``erase`` is then of value heads and ``read`` of key heads.
        strength: the strongest decay of a token, most are far weaker.
        keys: instead of random ones. beta: instead of random ones up to 2.
    """

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    values = heads * fold
    shape = {
        "none": None,
        "head": (values,),
        "token": (batch, length, values),
        "channel": (batch, length, values, width),
    }
    inputs: dict[str, Tensor | None] = {
        "q": draw(batch, length, heads, width),
        "k": F.normalize(draw(batch, length, heads, width), dim=-1) if keys is None else keys,
        "v": draw(batch, length, values, value),
        "log_decay": None if decay == "none" else -strength * torch.rand(*shape[decay], dtype=torch.float64) ** 4,
        "state": draw(batch, values, width, value),
    }
    if rule == "beta":
        drawn = 2 * torch.rand(batch, length, values, dtype=torch.float64)
        inputs["beta"] = drawn if beta is None else torch.full_like(drawn, beta)
    elif rule == "general":
        inputs["read"] = F.normalize(draw(batch, length, heads, width), dim=-1)
        inputs["erase"] = F.normalize(draw(batch, length, values, width), dim=-1)
    return Case(inputs, draw(batch, length, values, value), draw(batch, values, width, value))


def blocks(name: str, x: Tensor) -> list[Tensor]:
    """Parts of an array for which the error must be small on its own: heads, and 64 tokens of them."""
    if name.endswith(("final", "state")):
        return list(x.unbind(1))
    if x.dim() == 1:  # of a decay per head
        return list(x.unbind())
    return [part for rows in x.split(64, 1) for part in rows.unbind(2)]


def assert_contract(case: Case, dtype: torch.dtype, **options: Any) -> None:
    """Every output and gradient is, in each head and block, at most twice as wrong as the recurrence in ``dtype``.

    Four times in fp32, where the recurrence rounds nothing but its own sums, and a chunk the products of keys that its
    system is made of besides. Inputs are rounded first, so that only the computation can be wrong.
    """
    times = 4 if dtype == torch.float32 else 2
    case.inputs = {n: None if x is None else x.to(dtype).double() for n, x in case.inputs.items()}
    case.grad_output, case.grad_state = (x.to(dtype).double() for x in (case.grad_output, case.grad_state))
    exact, ours, leaves = case.expected(), case.measured(dtype, **options), case.leaves(dtype)
    low = {name: None if x is None else x.to(dtype) for name, x in leaves.items()}
    plain, eps = case.gradients(leaves, *recurrence(**low, **case.options)), torch.finfo(dtype).eps
    for name in exact:
        assert torch.isfinite(ours[name]).all(), name
        for a, b, c in zip(*(blocks(name, x[name].double()) for x in (exact, plain, ours))):
            assert (c - a).abs().max() <= times * ((b - a).abs().max() + eps * a.abs().max()), name


def needed_flops(counted: int, calls: list[Any]) -> int:
    """FLOPs of calls of the op, without what is computed of the pairs above the diagonal of each chunk."""
    for x in (DeltaArguments(*call) for call in calls):
        batch, length, heads, value = x.v.shape
        width, erases = x.q.shape[-1], x.beta is not None or x.read is not None
        writers, by_channel = 2 if x.read is not None else 1, x.log_decay is not None and x.log_decay.dim() == 4
        chunks = [CHUNK] * (length // CHUNK) + [length % CHUNK]
        for c in chunks:
            rows = 1 << (c - 1).bit_length() if c and by_channel else c
            above, own = rows**2 - rows * (rows + 1) // 2, rows
            spare = above * writers * value + above * value * (writers if erases else 0)
            if not by_channel:
                spare += writers * width * (above + (above + own if erases else 0))
            counted -= 2 * batch * heads * spare
    return counted
