"""Host side of the backward pass of delta attention in Triton: it computes the chunks again, from the first state."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from zoo_kernels.delta.arguments import DeltaArguments, DeltaUpstream
from zoo_kernels.delta.triton.configs import LEVELS
from zoo_kernels.delta.triton.gradients import gradients_kernel, through_kernel
from zoo_kernels.delta.triton.host import HostCall, Prepared, Writer


class Walked(NamedTuple):
    """What both walks leave.

    Attributes:
        before: state before each chunk.
        behind: gradient of the state behind each chunk.
        grad_output: of the outputs.
        of_reads: gradients of what is read; the gradient of the outputs if nothing is.
    """

    before: Tensor
    behind: Tensor
    grad_output: Tensor
    of_reads: Tensor


def triton_backward(x: DeltaArguments, up: DeltaUpstream) -> dict[str, Tensor]:
    """Gradients by the name of what they are of; that of the log decay is of each token, ``(B, T, Hv, 1 or D)``."""
    call = HostCall(x)
    made = Prepared(call)
    u, before, _ = made.forward()
    grad_output = up.grad_output.to(x.v.dtype).contiguous()
    of_reads, behind, grad_state = made.backward(grad_output, up.grad_final.contiguous())
    walked = Walked(before, behind, grad_output, grad_output if call.read is None else of_reads)
    found = {"state": grad_state} | _of_values(x, made, u, walked)
    writers = [
        _gradients(made, writer, values, walked, i == 0, up.decay_gradient)
        for i, (writer, values) in enumerate(made.written(u))
    ]
    found["q"], of_read = (_total(*(of_writer[i] for of_writer in writers)) for i in (0, 1))
    found["k"] = writers[-1][2] + of_read if x.beta is not None else writers[-1][2]
    if x.read is not None:
        found["read"], found["erase"] = of_read, writers[0][2]
    for name in found.keys() & {"q", "k", "read", "erase"}:
        found[name] = _of_heads(found[name], getattr(x, name))
    if up.decay_gradient:
        found["log_decay"] = _total(*(of_writer[3] for of_writer in writers))
    return found


def _of_values(x: DeltaArguments, made: Prepared, u: Tensor, walked: Walked) -> dict[str, Tensor]:
    """Gradients of the values, and of beta."""
    call, writer = made.call, made.erases if made.writes is None else made.writes
    assert writer is not None
    products = [(writer.of_q, walked.grad_output)]
    if call.read is not None:
        products.append((writer.of_p, walked.of_reads))
    if x.beta is None:
        dtype = x.v.dtype
        return {"v": made.read_out(writer.kept, walked.behind, *products, dtype=dtype, transposed=True)}
    dtype = torch.float32
    of_written = made.read_out(writer.kept, walked.behind, *products, dtype=dtype, transposed=True)
    missed = x.v - made.read_out(made.reads, walked.before, (writer.of_p, u), dtype=dtype)
    found = {"v": (x.beta[..., None] * of_written).to(x.v.dtype)}
    return found | {"beta": (of_written * missed).sum(-1).to(x.beta.dtype)}


def _gradients(
    made: Prepared, writer: Writer, values: Tensor, walked: Walked, first: bool, of_decay: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, reads, the writer and, if ``of_decay``, the log decays through one writer, in fp32."""
    call, config = made.call, made.call.config("gradients", by_kind=True)
    dq, dy = (call.tokens(call.width) for _ in range(2))
    dp = dq if call.read is None else call.tokens(call.width)
    of_decays = call.tokens(call.width if call.kind == 3 else 1) if of_decay else dq
    passed = torch.empty_like(made.kept)
    common = {"D": call.width, "E": call.value, "FIRST": first}
    through = call.config("through")
    parts = -(-call.width // through.tiles["TILE_D"])
    call.launch(
        through_kernel, through, parts, walked.grad_output, walked.of_reads, values, walked.before,
        walked.behind, dq, dp, dy, passed, *call.sizes, PARTS=parts, READS=call.read is not None,
        TILES=-(-call.value // through.tiles["TILE"]), **common,
    )  # fmt: skip
    read = call.q if call.read is None else call.read
    decay, documents = (dq if a is None else a for a in (call.decay, call.documents))
    call.launch(
        gradients_kernel, config, 1, call.q, read, writer.y, values, walked.grad_output, walked.of_reads, decay,
        documents, writer.of_q, writer.of_p, passed, dq, dp, dy, of_decays, *call.sizes, call.q.shape[2],
        read.shape[2], writer.y.shape[2], LEVELS, call.scale, PARTS=-(-call.width // config.tiles["TILE_D"]),
        TILES=-(-call.value // config.tiles["TILE"]), GRADIENT=of_decay, **common, **call.flags(),
    )  # fmt: skip
    return dq, dp, dy, of_decays


def _total(first: Tensor, *second: Tensor) -> Tensor:
    return first + second[0] if second else first


def _of_heads(found: Tensor, like: Tensor) -> Tensor:
    """A gradient of value heads, summed over those that share a head, in the type of the array."""
    if found.shape[2] != like.shape[2]:
        found = found.unflatten(2, (like.shape[2], -1)).sum(3)
    return found.to(like.dtype)
