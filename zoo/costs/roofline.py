"""Roofline of training, prefill and decoding: FLOPs, memory traffic, and the least time a device needs for them.

Roofline (Williams et al. 2009, doi:10.1145/1498765.1498785): time >= max(FLOPs / peak, bytes / bandwidth). Counted for
one device. P parameters, b bytes of a number, N tokens of a pass, A = 4 C + 2 H (D + E) + 4 M numbers that a layer
saves per token (C width, H heads, D and E width of a query and a value, which make 8 C + 4 M if both are C / H, M width
of the MLP; gates and feature maps of some mixers add up to a third):

    train    FLOPs = 3 x forward (4 x with checkpoint_activations); held: fp32 weights and gradients, the optimizer's
             moments, A b per token and layer; moved: weights read twice in b, all fp32 state read once and
             written once, activations the same (twice with checkpoint_activations).
    prefill  FLOPs = forward, logits of the last token only; moved: weights, the cache once, activations as above.
    decode   FLOPs of the next token of every row; moved: weights, what the token reads of the caches, and recurrent
             states written back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from zoo.costs.hardware import DTYPES, Hardware
from zoo.mixers import Mixer
from zoo.mixers.caches import StateCache
from zoo.model import Decoder
from zoo.model.parameters import split_parameters

FULL = 4  # bytes of fp32
SHORT = 256  # tokens
MOMENTS = {"adamw": (2, 2), "muon": (1, 2)}  # per number of the blocks' matrices, and of the rest
NOT_KNOWN = (0, 0)  # of an optimizer from outside: sums are lower bounds
TRAINED = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class Phase:
    """Work of one pass: a training step, a prefill, or one token of decoding for every row.

    Attributes:
        name: name of the phase.
        tokens: tokens that the pass reads (train, prefill) or generates (decode).
        flops: FLOPs of the pass.
        traffic: bytes to and from the main memory, by kind.
        memory: bytes held in memory, by kind.
    """

    name: str
    tokens: int
    flops: float
    traffic: dict[str, float]
    memory: dict[str, float]

    @property
    def moved(self) -> float:
        """Bytes moved to and from the main memory."""
        return sum(self.traffic.values())

    @property
    def held(self) -> float:
        """Bytes held in memory."""
        return sum(self.memory.values())

    @property
    def intensity(self) -> float:
        """FLOPs per byte moved."""
        return self.flops / self.moved


@dataclass(frozen=True)
class Floor:
    """Least seconds of a pass on a device: for its FLOPs, and for its bytes."""

    compute: float
    transfer: float

    @property
    def seconds(self) -> float:
        """The longer of the two times."""
        return max(self.compute, self.transfer)

    @property
    def bound(self) -> str:
        """The limiting resource, ``compute`` or ``memory``."""
        return "compute" if self.compute >= self.transfer else "memory"


def floor(phase: Phase, hardware: Hardware, dtype: str) -> Floor:
    """Computes the least times of a pass on a device."""
    return Floor(phase.flops / hardware.peak[dtype], phase.moved / hardware.bandwidth)


def training(
    decoder: Decoder, context: int, batch: int, dtype: str, optimizer: str = "adamw", recompute: bool = False
) -> Phase:
    """Returns the work of one optimizer step over ``batch`` sequences.

    With ``recompute``, activations are checkpointed layer by layer.
    """
    cost, size, tokens = decoder.cost(context), DTYPES[dtype].itemsize, batch * context
    memory = training_memory(decoder, tokens, dtype, optimizer, recompute)
    weights, moments = memory["weights"], memory["optimizer"]
    whole = sum(activation_numbers(decoder)) * size * tokens
    return Phase(
        "train",
        tokens,
        (4 if recompute else 3) * cost.flops_per_token * tokens,
        {
            "weights": 2 * weights // FULL * size,
            "gradients": 2 * weights,
            "optimizer": 2 * (weights + moments),
            "activations": 2 * whole * (2 if recompute else 1),
        },
        memory,
    )


def training_memory(
    decoder: Decoder, tokens: int, dtype: str, optimizer: str = "adamw", recompute: bool = False
) -> dict[str, float]:
    """Returns the bytes that training holds at once, by kind, for ``tokens`` in all.

    The other arguments are those of :func:`training`. The state of an external optimizer is not known, and left out.
    """
    size = DTYPES[dtype].itemsize
    matrices, rest = (sum(p.numel() for p in group) for group in split_parameters(decoder))
    weights = FULL * (matrices + rest)
    of_matrices, of_rest = MOMENTS.get(optimizer, NOT_KNOWN)
    moments = FULL * (matrices * of_matrices + rest * of_rest)
    numbers = activation_numbers(decoder)
    kept = decoder.config.width * len(numbers) + max(numbers) if recompute else sum(numbers)
    kept = kept * size * tokens
    return {"weights": weights, "gradients": weights, "optimizer": moments, "activations": kept}


def prefill(decoder: Decoder, context: int, batch: int, dtype: str) -> Phase:
    """Returns the work of reading the prompt of ``batch`` sequences into empty caches."""
    kind = DTYPES[dtype]
    cost, tokens = decoder.cost(context, kind), batch * context
    head = 2 * decoder.head.weight.numel()
    whole, layer = (f(activation_numbers(decoder)) * kind.itemsize * tokens for f in (sum, max))
    weights, caches = cost.parameters * kind.itemsize, batch * cost.cache_bytes
    return Phase(
        "prefill",
        tokens,
        (cost.flops_per_token - head) * tokens + head * batch,
        {"weights": _read(decoder) * kind.itemsize, "cache": caches, "activations": 2 * whole},
        {"weights": weights, "cache": caches, "activations of a layer": layer},
    )


def decoding(decoder: Decoder, context: int, batch: int, dtype: str) -> Phase:
    """Returns the work of the next token of ``batch`` sequences, each with a cache of ``context`` tokens."""
    kind = DTYPES[dtype]
    cost = decoder.cost(context, kind)
    mixers = [block.mixer for block in decoder.layers]
    read = sum(cache_read(mixer, context, kind) for mixer in mixers)
    traffic = {"weights": float(_read(decoder) * kind.itemsize), "cache": float(batch * read)}
    if states := sum(state_bytes(mixer) for mixer in mixers):
        traffic["states written"] = batch * states
    memory = {"weights": float(cost.parameters * kind.itemsize), "cache": float(batch * cost.cache_bytes)}
    return Phase("decode", batch, cost.decode_flops_per_token * batch, traffic, memory)


def share_costs(decoder: Decoder) -> Decoder:
    """Makes equal layers of a decoder share the computation of costs, and returns the decoder.

    Layers are equal if they are of one entry with parameters of the same shapes and the same cost at a short context:
    closed forms that count blocks are slow at a million tokens. For decoders on the meta device, which compute nothing.
    """
    known: dict[Any, tuple[Any, Any]] = {}
    for entry, block in zip(decoder.config.layer_types, decoder.layers):
        mixer = block.mixer
        alike = entry, tuple(p.shape for p in mixer.parameters()), mixer.cost(SHORT)
        if alike not in known:
            known[alike] = cache(mixer.cost), cache(mixer.new_cache)
        vars(mixer)["cost"], vars(mixer)["new_cache"] = known[alike]  # before the methods of the class
    return decoder


def activation_numbers(decoder: Decoder) -> list[int]:
    """Returns A of the formulas above: numbers that each layer saves per token for the backward pass."""
    width, hidden = decoder.config.width, decoder.config.hidden_width()
    return [4 * width + block.mixer.kept_numbers() + 4 * hidden for block in decoder.layers]


def cache_read(mixer: Mixer, context: int, dtype: torch.dtype) -> float:
    """Bytes of one sequence's cache that the next token reads: at most what it holds, and the states whole."""
    held = mixer.cost(context, dtype).cache_bytes
    return min(held, max(mixer.step_bytes(context, dtype), state_bytes(mixer)))


def state_bytes(mixer: Mixer) -> int:
    """Bytes of one sequence's recurrent states, which every token rewrites."""
    leaves = mixer.new_cache(1, 0, "meta", torch.bfloat16).leaves()
    return sum(leaf.nbytes() for leaf in leaves if isinstance(leaf, StateCache))


def _read(decoder: Decoder) -> int:
    """Parameters that a forward pass reads: of an untied embedding only the rows of its tokens, left out here."""
    unread = 0 if decoder.config.tie_embeddings else decoder.embedding.weight.numel()
    return sum(p.numel() for p in decoder.parameters()) - unread
