"""Checks of linear attention against its reference, for zoo_kernels.bench."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.check import KEEP, LENGTHS, PACKED, Arrays, Check, in_halves, last_of, rows_of
from zoo_kernels.bench.inputs import decays_of, documents_of
from zoo_kernels.bench.record import Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.linear.api import NormalizedState, State, linear_attention, linear_attention_step

DECAYS = ("none", "slopes", "paper", "strong", "token")


def _parted(state: Tensor, normalize: bool) -> State:
    """A state that is one column wider with a normalizer, as two arrays."""
    return NormalizedState(state[..., :-1].contiguous(), state[..., -1].contiguous()) if normalize else state


def _joined(state: State | None) -> Tensor:
    assert state is not None
    return torch.cat([state.s, state.z[..., None]], -1) if isinstance(state, NormalizedState) else state


def _whole(
    name: str,
    shape: Shape,
    *,
    decay: str = "slopes",
    documents: tuple[int, ...] = (),
    normalize: bool = False,
    value: int = 0,
    strided: bool = False,
    **options: Any,
) -> Check:
    """A call over whole sequences, with states and all gradients; ``value``: width of the values."""
    batch, length, heads, width, _ = shape
    token, of_state = (batch, length, heads), (batch, heads, width, (value or width) + normalize)

    def other(device: torch.device) -> Arrays:
        decays = decays_of(decay, batch, length, heads, device)
        return {"log_decay": decays, "documents": documents_of(documents, batch, length, device)}

    def call(state: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        given |= {"scale": width**-0.5, "normalize": normalize, "return_state": True, **options}
        output, last = linear_attention(**given, initial_state=_parted(state, normalize))
        return output, _joined(last)

    return Check(
        f"linear {name}",
        shape,
        call,
        sizes={"q": (*token, width)}
        | dict.fromkeys(("v", "to output"), (*token, value or width))
        | {"k": (*token, width)},
        wide=dict.fromkeys(("state", "to last state"), of_state),
        other=other,
        outputs=("output", "last state"),
        positive=("q", "k", "state") if normalize else (),
        strided=strided,
    )


@piece("cuda", "correctness_linear")
def whole(bench: Bench) -> Iterator[Check]:
    """Forward and backward, the plainest first, and that a repeat gives the same bits; dry: one of each kind."""
    yield from in_halves(bench, _whole_cases(bench))
    yield from in_halves(
        bench, [_whole("repeats", bench.pick(Shape(2, 3000, 8, 128), Shape(1, 20, 2, 16)))], repeats=20
    )


def _whole_cases(bench: Bench) -> Iterator[Check]:
    base, width, count = bench.pick((129, 64, 3), (17, 16, 2))

    def at(name: str, length: int = base, width: int = width, heads: int = count, **rest: Any) -> Check:
        return _whole(name, Shape(max(2, rows_of(bench, length)), length, heads, width), **rest)

    yield from (at("slopes", length) for length in bench.pick(LENGTHS, (base,)))
    yield from (at(decay, decay=decay) for decay in DECAYS)
    yield at("documents", documents=PACKED)
    yield from (at(f"documents,{decay}", documents=PACKED, decay=decay) for decay in ("strong", "token"))
    yield at("normalize", normalize=True)
    yield at("normalize,documents", normalize=True, documents=PACKED)
    yield at("strided", strided=True)
    yield from (at(name, algorithm=name) for name in ("parallel", "chunk", "scan"))
    yield at("D,E", width=width - 4, value=width // 2 + 8)
    if not bench.dry:
        yield from (at("slopes", width=wide) for wide in (128, 256))
        yield from (at(kind, n, decay=kind) for kind in ("none", "strong", "token") for n in (1, 63, 65, 1000))
        yield from (at("token", 1000, wide, decay="token") for wide in (64, 128, 256))
        yield at("long", 4097, heads=2)


@piece("cuda", "correctness_large")
def large(bench: Bench) -> Iterator[Check]:
    """More than 2^31 numbers, whose last ones offsets of 32 bits would not reach: the last tokens of the last head.

    The decay is so strong that what lies further back than the span has no weight.
    """
    shape, span = bench.pick((Shape(1, 140_000, 128, 128), KEEP + 192), (Shape(1, 140, 2, 16), KEEP + 32))

    def call(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        return linear_attention(q, k, v, torch.full(q.shape[2:3], -1.0, device=q.device), backend=backend)[0]

    def cut(x: Arrays) -> Arrays:
        return {name: array[:, -span:, -1:] for name, array in x.items()}

    sizes = dict.fromkeys(("q", "k", "v", "to output"), shape[:4])
    yield from in_halves(bench, [Check("large linear", shape, call, sizes, cut=cut, part=last_of)])


def _steps(name: str, shape: Shape, decay: str = "slopes", normalize: bool = False, graph: bool = False) -> Check:
    """Several steps of decoding, one after the other."""
    batch, _, heads, width, _ = shape

    def call(q: Tensor, k: Tensor, v: Tensor, state: Tensor, log_decay: Tensor | None, backend: str) -> Any:
        s = _parted(state.clone(), normalize)
        how: dict[str, Any] = {"scale": 0.25, "normalize": normalize, "backend": backend}
        tokens = zip(q.unbind(1), k.unbind(1), v.unbind(1))
        outputs = [linear_attention_step(*token, log_decay, s, **how) for token in tokens]
        return torch.stack(outputs, 1), _joined(s)

    return Check(
        f"step linear {name}",
        shape,
        call,
        sizes=dict.fromkeys(("q", "k", "v"), shape[:4]),
        wide={"state": (batch, heads, width, width + normalize)},
        other=lambda device: {"log_decay": decays_of(decay, 1, 1, heads, device)},
        outputs=("output", "last state"),
        positive=("q", "k", "state") if normalize else ("state",),
        graph=graph,
    )


@piece("cuda", "correctness_decode")
def steps(bench: Bench) -> Iterator[Check]:
    """Steps of decoding."""
    shape = bench.pick(Shape(3, 5, 8, 128), Shape(3, 5, 2, 16))
    checks = [_steps(decay, shape, decay) for decay in ("slopes", "none", "strong")]
    checks += [_steps("normalize", shape, normalize=True), _steps("slopes, CUDA graph", shape, graph=True)]
    yield from in_halves(bench, checks)
