"""What zoo_kernels.bench times of delta attention: whole sequences and steps, a decay per head or per channel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from zoo_kernels.bench import rows
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import Arrays, Case
from zoo_kernels.bench.check import KEEP, Checked, large
from zoo_kernels.bench.peers import fla_peer
from zoo_kernels.bench.record import Shape
from zoo_kernels.bench.registry import Item, piece
from zoo_kernels.bench.timed import Flat, Timed
from zoo_kernels.delta.api import delta_attention, delta_attention_step

GATED, KDA = "gated delta rule", "KDA"  # a decay per head, and per channel
RULES = {GATED: "gated_delta_rule", KDA: "kda"}  # by their names in flash-linear-attention
MOVED = {GATED: rows.ARRAYS, KDA: rows.WITH_DECAYS}


def gates(rule: str, device: torch.device, *tokens: int, width: int) -> Arrays:
    """Log decays of tokens ``(.., H)`` or their channels, and how much of a token is written, fp32."""
    decays = (*tokens, width) if rule == KDA else tokens
    return {"log_decay": -0.1 * torch.rand(decays, device=device), "beta": torch.rand(tokens, device=device)}


def attention(rule: str, shape: Shape) -> Case:
    """A call over whole sequences, which gives the output alone."""

    def call(**x: Any) -> Tensor:
        return delta_attention(**x)[0]

    def other(device: torch.device) -> Arrays:
        return gates(rule, device, shape.batch, shape.length, shape.heads, width=shape.width)

    return Case.whole(rule, shape, call, other, "log_decay", "beta")


@piece("cuda", "correctness_large")
def many_numbers(bench: Bench) -> Iterator[Checked]:
    """More than 2^31; the decay is so strong that what lies further back than the span has no weight."""

    def call(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
        decay, beta = (torch.full(q.shape[:3], number, device=q.device) for number in (-1.0, 0.01))
        return delta_attention(q, k, v, decay, beta=beta, backend=backend)[0]

    span = KEEP + bench.pick(192, 32)
    yield from large(bench, "delta", "decay of 1", call, keys=span, queries=span)


def beside_fla(bench: Bench, rule: str, shape: Shape) -> Timed:
    """A rule and its peer."""
    return rows.beside_fla(bench, attention(rule, shape), RULES[rule], MOVED[rule])


@piece("cuda", "delta")
def contexts(bench: Bench) -> Iterator[Item]:
    """Times both rules over contexts, and how flat they are."""
    shapes = rows.all_contexts(bench)[::3]
    yield from (beside_fla(bench, rule, shape) for shape, rule in product(shapes, RULES))
    yield from (Flat(rule, shapes, dict.fromkeys(rows.ARRAYS)) for rule in RULES)


@piece("first", "delta-8k", rule=GATED)
@piece("first", "kda-8k", rule=KDA)
def headline(bench: Bench, rule: str) -> Iterator[Timed]:
    """One context."""
    yield beside_fla(bench, rule, rows.one_context(bench, 8192))


def of_step(rule: str, shape: Shape, device: torch.device) -> Arrays:
    """Gates and state of a step."""
    state = torch.zeros(shape.batch, shape.heads, shape.width, shape.width, device=device)
    return gates(rule, device, shape.batch, shape.heads, width=shape.width) | {"state": state}


def step(rule: str, shape: Shape) -> Case:
    """One step, which updates its state."""
    sizes = dict.fromkeys("qkv", (shape.batch, shape.heads, shape.width))
    return Case(f"{rule}, step", shape, delta_attention_step, sizes, partial(of_step, rule, shape))


@piece("cuda", "decode", batches=(1, 32))
@piece("first", "decode", batches=(1,))
def steps(bench: Bench, batches: tuple[int, ...]) -> Iterator[Timed]:
    """Steps of both rules over batch sizes."""
    for shape, (rule, theirs) in product(rows.one_token(bench, batches), RULES.items()):
        peers = partial(fla_peer, bench, theirs, step=True)
        yield from rows.of_step(step(rule, shape), peers, rows.of_state(bench, shape))


@piece("cuda", "overhead")
def overhead(bench: Bench) -> Iterator[Timed]:
    """Eager calls on small arrays."""
    yield from rows.of_host(
        bench, partial(fla_peer, bench, RULES[GATED]), partial(attention, GATED), partial(step, GATED)
    )
