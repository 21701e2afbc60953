"""The closed forms of cost() are what is measured.

Products are counted by FlopCounterMode, to which the custom ops hand formulas of their shapes, with whole blocks and
whole chunks in them. cost() leaves out what of these is masked away and what is padding, and so does :class:`Needed`,
which sees the arguments of each call. Then the two are equal for every mixer, in these senses:

    elementwise work is in neither: FlopCounterMode counts none, of sums, gates, norms and feature maps;
    cost() of a pattern that is being learned is that of the hard pattern, see its test below.

tests/mixers/test_computed.py counts what the bodies of the ops multiply.
"""

from __future__ import annotations

from importlib import import_module
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.conformance.cases import (
    CASES,
    HEADS,
    WIDTH,
    draw,
    every_mixer,
    every_name,
    label,
    make,
    states,
    tensors,
    with_slow_shapes,
)
from zoo.mixers import longformer, topk
from zoo.mixers.base import Mixer
from zoo.mixers.caches import Cache, LevelCache
from zoo.mixers.parts import selection
from zoo_kernels.delta.arguments import DeltaToken
from zoo_kernels.family import families

CONTEXTS = (7, 150)  # less than a block or a chunk, and more than two of 64 tokens with a tail
LEARNED = [options for name, options in CASES if name == "learned_sparse"]


class Calls(TorchDispatchMode):
    """Notes every op that is called, with its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


class Needed(Calls):
    """FLOPs of a forward pass of ``mixer`` without those that nothing needs; entered by itself, and read afterwards.

    Beside what the ops mask, four functions of mixers ask for more than is needed:
        pick            scores all blocks, also those that are not finished when the query comes.
        group           fills the groups of queries that picked a block up to whole blocks.
        attend_tokens   is dense, as a reference: it scores what is behind the query, and multiplies weights of 0.
        replace_rows    comes after the rows of global tokens have been computed as those of others.
    """

    def __init__(self, mixer: Mixer, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.mixer, self.extra, self.counter = mixer, 0, FlopCounterMode(display=False)
        watches = [(selection, "pick", self.pick), (selection, "_group", self.group)]
        watches += [(topk, "attend_tokens", self.attend_tokens), (longformer, "replace_rows", self.replace_rows)]
        for module, name, watch in watches:
            monkeypatch.setattr(module, name, self._watched(watch, getattr(module, name)))

    def __enter__(self) -> Needed:
        self.counter.__enter__()  # behind this one, so that both see every op
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.counter.__exit__(*error)

    @property
    def pair(self) -> int:
        """FLOPs of a query and a key of one head."""
        return 2 * (self.mixer.head_dim + self.mixer.value_dim)

    @property
    def flops(self) -> int:
        """What is counted, but of each kind of attention what its oracle says that its calls need."""
        found, of_ops = self.counter.get_total_flops() - self.extra, self.counter.get_flop_counts()["Global"]
        for family in families().values():
            op = getattr(torch.ops.attention_zoo, family.title.replace(" ", "_"))
            calls = [args for func, args in self.calls if func is op.default]
            needed = import_module(f"tests.kernels.{family.name}_oracle").needed_flops
            found += needed(of_ops.get(op, 0), calls) - of_ops.get(op, 0)
        return found

    def _watched(self, watch: Any, function: Any) -> Any:
        def call(*args: Any) -> Any:
            result = function(*args)
            watch(result, *args)
            return result

        return call

    def pick(self, _: Tensor, q: Tensor, means: Tensor, first: Tensor, last: Tensor, count: int) -> None:
        batch, length, heads, width = q.shape
        finished = (last - first).expand(batch, length).sum().item()
        self.extra += 2 * heads * width * (batch * length * means.shape[1] - finished)

    def group(self, groups: Any, picks: Tensor, tokens: int, block: int, most: int) -> None:
        listed = groups.layout.by_query.offsets.max().item() * block
        self.extra += self.pair * block * (listed - (groups.pairs >= 0).sum().item())

    def attend_tokens(self, _: Tensor, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, count: int) -> None:
        reads = allowed.expand(len(q), -1, -1).sum(-1)
        pairs, picked = allowed[0].numel() * len(q), reads.clamp(max=count).sum().item()
        extra = q.shape[3] * (pairs - reads.sum().item()) + v.shape[3] * (pairs - picked)
        self.extra += 2 * q.shape[2] * extra

    def replace_rows(
        self, _: Tensor, output: Tensor, q: Tensor, k: Tensor, v: Tensor, rows: Tensor, documents: Any, most: int
    ) -> None:
        near, flags = self.mixer.near, self.mixer.tokens.flags(torch.arange(k.shape[1]), None).tolist()
        for t in rows[0].nonzero()[:, 0].tolist():
            globals = {j for j in range(t + 1) if flags[j]}
            for head in range(k.shape[2]):
                rate, taps = near[head % len(near)].rate, near[head % len(near)].taps
                read = globals | {t - i * rate for i in range(taps) if t >= i * rate}
                self.extra += self.pair * q.shape[2] // k.shape[2] * len(read)


def measured(mixer: Mixer, context: int, monkeypatch: pytest.MonkeyPatch, **call: Any) -> int:
    """FLOPs of a forward pass that are needed."""
    with monkeypatch.context() as patch:
        with Needed(mixer, patch) as needed:
            mixer(draw(1, context), **call)
        return needed.flops


@every_mixer
def test_parameters(name, options):
    for heads in (1, HEADS):
        mixer = make(name, options | ({"kv_heads": 1} if "kv_heads" in options else {}), heads=heads)
        assert mixer.cost(100).parameters == sum(p.numel() for p in mixer.parameters() if p.requires_grad)


@every_mixer
def test_cache_bytes(name, options):
    """Counted on the tensors themselves; a cache that was allocated at once holds no more than it needs."""
    for context, dtype in product(CONTEXTS, (torch.bfloat16, torch.float32, torch.float64)):
        mixer = make(name, options).to(dtype)
        cache = mixer.new_cache(1, capacity=context, dtype=dtype)
        with torch.no_grad():
            mixer(draw(1, context, dtype), cache=cache)
        held = sum(t.nbytes for t in tensors(cache) if t.is_floating_point())
        assert held == cache.nbytes() == mixer.cost(context, dtype).cache_bytes, f"{context} tokens of {dtype}"


@with_slow_shapes
def test_cache_bytes_of_a_batch_are_those_of_its_rows(name, options):
    mixer = make(name, options).float()
    cache = mixer.new_cache(3, dtype=torch.float32)
    with torch.no_grad():
        for piece in draw(3, 20, torch.float32).split([15, 1, 1, 3], 1):
            mixer(piece, cache=cache)
    assert cache.nbytes() == 3 * mixer.cost(20, torch.float32).cache_bytes


@every_mixer
def test_training_flops(name, options, monkeypatch):
    mixer = make(name, options)
    for context in CONTEXTS:
        for documents in (None, torch.zeros(1, context, dtype=torch.long)):
            with torch.no_grad():
                counted = measured(mixer, context, monkeypatch, documents=documents)
            assert mixer.cost(context).flops_per_token * context == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("options", LEARNED, ids=[label(("learned_sparse", options)) for options in LEARNED])
@pytest.mark.parametrize("context", CONTEXTS)
def test_training_of_a_pattern_costs_as_much_as_is_said_of_its_estimator(options, context, monkeypatch):
    """cost() is that of the hard pattern; ``straight_through`` reads all that is in reach once more."""
    mixer = make("learned_sparse", options).train()
    counted = measured(mixer, context, monkeypatch)
    soft = 0 if mixer.frozen or mixer.samples else 4 * WIDTH * mixer.reachable.pairs(context)
    assert mixer.cost(context).flops_per_token * context + soft == pytest.approx(counted, rel=1e-12)


@every_mixer
def test_decode_flops(name, options):
    """Counted products, and two FLOPs for each number of a state and each time it is written, which is no product."""
    mixer = make(name, options)
    for context in CONTEXTS:
        x, cache = draw(1, context + 1), mixer.new_cache(1, dtype=torch.float64)
        with torch.no_grad():
            mixer(x[:, :-1], cache=cache)
            with FlopCounterMode(display=False) as counter, Calls() as step:
                mixer(x[:, -1:], cache=cache)
        update = 2 * writes(step.calls) * one_state(cache)
        assert mixer.cost(context).decode_flops_per_token == counter.get_total_flops() + update


def writes(calls: list[Any]) -> int:
    """How often a state is written for a token: of the delta rule for each product, twice where it also erases."""
    steps = [DeltaToken(*args) for func, args in calls if func is torch.ops.attention_zoo.delta_attention_step.default]
    return sum(1 if step.erase is None else 2 for step in steps) or 1


def one_state(cache: Cache) -> int:
    """Numbers of the states that a token is written to: of those of levels to one."""
    levels = sum(leaf.states[:, 0].numel() for leaf in cache.leaves() if isinstance(leaf, LevelCache))
    parts = (getattr(state, name, None) for state in states(cache) for name in ("state", "normalizer", "maximum"))
    return levels + sum(part.numel() for part in parts if part is not None)


@every_name
def test_costs_of_layers_add_up(name):
    cost = make(name).cost(50)
    total = cost + cost
    assert (total.parameters, total.cache_bytes) == (2 * cost.parameters, 2 * cost.cache_bytes)
    assert total.flops_per_token == 2 * cost.flops_per_token
    assert total.decode_flops_per_token == 2 * cost.decode_flops_per_token
    assert cost.flops_per_token > 2 * WIDTH


@every_name
def test_an_empty_context_costs_what_a_first_token_does(name):
    mixer = make(name)
    assert mixer.cost(0).flops_per_token == mixer.cost(1).flops_per_token
    assert mixer.cost(0).decode_flops_per_token > 0
