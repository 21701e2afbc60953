"""Checks of linear attention against its reference, for zoo_kernels.bench."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.check import LENGTHS, Arrays, Check, in_halves, rows_of
from zoo_kernels.bench.inputs import decays_of, documents_of, normal, slopes
from zoo_kernels.bench.record import Shape
from zoo_kernels.bench.registry import piece
from zoo_kernels.linear.api import NormalizedState, State, linear_attention, linear_attention_step

DECAYS = ("none", "slopes", "paper", "strong", "token")
PACKED = (1, 7, 64, 9, 2000)  # lengths of documents
KEEP = 64  # last tokens, which are compared where arrays are large


def _state(state: torch.Tensor, normalize: bool) -> State:
    """A state that is one column wider with a normalizer, as two arrays."""
    return NormalizedState(state[..., :-1].contiguous(), state[..., -1].contiguous()) if normalize else state


def _joined(state: State) -> torch.Tensor:
    return torch.cat([state.s, state.z[..., None]], -1) if isinstance(state, NormalizedState) else state


def _whole(
    name: str,
    shape: Shape,
    *,
    decay: str = "slopes",
    documents: tuple[int, ...] = (),
    normalize: bool = False,
    strided: bool = False,
    value: int = 0,
    **options: Any,
) -> Check:
    """A call over whole sequences, with states and all gradients; ``value``: width of the values."""
    batch, length, heads, width = shape[:4]
    value = value or width

    def draw(device: torch.device, dtype: torch.dtype) -> Arrays:
        sizes = {"q": width, "k": width, "v": value, "to output": value}
        x = {n: normal(device, dtype, batch, length, heads, size, strided=strided) for n, size in sizes.items()}
        x |= {
            n: normal(device, torch.float32, batch, heads, width, value + normalize) for n in ("state", "to last state")
        }
        if normalize:  # a normalizer of one sign, as feature maps give it
            x |= {n: x[n].abs() + 0.1 for n in ("q", "k")} | {"state": x["state"].abs()}
        decays = decays_of(decay, batch, length, heads, device)
        return x if decays is None else x | {"decay": decays}

    def call(x: Arrays, backend: str) -> Arrays:
        ids = documents_of(documents, batch, length, x["q"].device)
        how = {"initial_state": _state(x["state"], normalize), "return_state": True, "documents": ids, **options}
        how |= {"scale": width**-0.5, "normalize": normalize, "backend": backend}
        output, last = linear_attention(x["q"], x["k"], x["v"], x.get("decay"), **how)
        assert last is not None
        return {"output": output, "last state": _joined(last)}

    return Check(f"linear {name}", shape, draw, call)


@piece("cuda", "correctness_linear")
def whole(bench: Bench) -> Iterator[Check]:
    """Forward and backward, the plainest first, and that a repeat gives the same bits; dry: one of each kind."""
    yield from in_halves(bench, _whole_cases(bench))
    shape = bench.pick(Shape(2, 3000, 8, 128), Shape(1, 20, 2, 16))

    def draw(device: torch.device, dtype: torch.dtype) -> Arrays:
        x = {name: normal(device, dtype, *shape[:4]) for name in ("q", "k", "v", "to output")}
        return x | {"decay": slopes(shape.heads, device)}

    def call(x: Arrays, backend: str) -> Arrays:
        return {"output": linear_attention(*(x[n] for n in ("q", "k", "v", "decay")), scale=0.1, backend=backend)[0]}

    yield Check("linear repeats", shape, draw, call, repeats=20, dtype=bench.halves[0])


def _whole_cases(bench: Bench) -> Iterator[Check]:
    base, width = bench.pick(129, 17), bench.pick(64, 16)

    def at(name: str, length: int = base, width: int = width, heads: int = bench.pick(3, 2), **rest: Any) -> Check:
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

    def draw(device: torch.device, dtype: torch.dtype) -> Arrays:
        return {name: normal(device, dtype, *shape[:4]) for name in ("q", "k", "v", "to output")}

    def call(x: Arrays, backend: str) -> Arrays:
        decay = torch.full(x["q"].shape[2:3], -1.0, device=x["q"].device)
        return {"output": linear_attention(x["q"], x["k"], x["v"], decay, backend=backend)[0]}

    def cut(x: Arrays) -> Arrays:
        return {name: array[:, -span:, -1:] for name, array in x.items()}

    def part(x: Arrays) -> Arrays:
        return {name: array[:, -KEEP:, -1:] for name, array in x.items()}

    yield from in_halves(bench, [Check("large linear", shape, draw, call, cut, part)])


def _step(name: str, shape: Shape, decay: str = "slopes", normalize: bool = False, graph: bool = False) -> Check:
    """Several steps of decoding, one after the other."""
    batch, steps, heads, width = shape[:4]

    def draw(device: torch.device, dtype: torch.dtype) -> Arrays:
        x = {n: normal(device, dtype, batch, steps, heads, width) for n in ("q", "k", "v")}
        x["state"] = normal(device, torch.float32, batch, heads, width, width + normalize).abs()
        if normalize:
            x |= {n: x[n].abs() + 0.1 for n in ("q", "k")}
        decays = decays_of(decay, 1, 1, heads, device)
        return x if decays is None else x | {"decay": decays}

    def call(x: Arrays, backend: str) -> Arrays:
        state, found = _state(x["state"].clone(), normalize), []
        how: dict[str, Any] = {"scale": 0.25, "normalize": normalize, "backend": backend}
        for t in range(steps):
            q, k, v = (x[n][:, t] for n in ("q", "k", "v"))
            found.append(linear_attention_step(q, k, v, x.get("decay"), state, **how))
        return {"output": torch.stack(found, 1), "last state": _joined(state)}

    return Check(f"step linear {name}", shape, draw, call, graph=graph)


@piece("cuda", "correctness_decode")
def steps(bench: Bench) -> Iterator[Check]:
    """Steps of decoding."""
    shape = bench.pick(Shape(3, 5, 8, 128), Shape(3, 5, 2, 16))
    checks = [_step(decay, shape, decay) for decay in ("slopes", "none", "strong")]
    checks += [_step("normalize", shape, normalize=True), _step("slopes, CUDA graph", shape, graph=True)]
    yield from in_halves(bench, checks)
