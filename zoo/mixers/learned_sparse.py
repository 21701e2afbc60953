"""Softmax attention over blocks at learned distances, chosen by each head for itself.

    query block i reads its own block, the first g, and i - d for the k distances d of the largest logits s_d,
    1 <= d < reach; causally, in one softmax.

The logits are trained by an estimator of the gradient of the choice, which leaves the outputs those of the hard
pattern:

    straight_through   backward as if all distances were read with log sigmoid(s_d / tau) added to their scores
                       (Bengio et al. 2013, arXiv:1308.3432); it costs a second attention over ``reach`` blocks.
    gumbel             s + tau * Gumbel noise chooses in training (Kool et al. 2019, arXiv:1903.06059); backward as
                       above, but over the chosen blocks alone: it costs no more than these, the noise explores.

Queries, keys and values have the gradients of the hard pattern. Distances, unlike blocks, mean the same everywhere in a
text, and a choice that is a parameter cannot look at the future. cost() is that of the hard pattern. Over packed
documents the bias has no Triton form: there a GPU trains the logits with the PyTorch form of the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.parts.call import Call
from zoo.mixers.parts.options import Gate, HeadDim, KvHeads, QkNorm, RopeFraction, RopeTheta, ValueDim
from zoo.mixers.parts.patterns import BlockPattern, BlockSparseMixer, hashed
from zoo.mixers.registry import register

SLOPE = 0.05  # of the logits at the start
ESTIMATORS = {"straight_through": False, "gumbel": True}  # whether noise searches, and not a gradient for all distances


@register("learned_sparse")
class LearnedSparseAttention(BlockSparseMixer):
    """Softmax attention over the own block, the first ones, and ``top_k`` blocks at learned distances.

    Args:
        block: tokens of a block: 16, 32, 64 or 128.
        top_k: number of distances that a head chooses, beside its own block.
        reach: distances below this can be chosen, in blocks; the own block has distance 0. Distances that do not occur
            in the training sequences are not trained: ``reach * block`` should not exceed their length.
        global_blocks: first blocks of the document, which all queries read.
        estimator: estimator of the gradient of the logits, ``straight_through`` or ``gumbel``.
        temperature: temperature tau of the sigmoid and of the noise.
        frozen: do not train the logits, as after :meth:`freeze`.
        seed: seed of the noise.
        kv_heads: number of key and value heads G, a divisor of the heads; None for one per query head.
        head_dim: width D of the queries and keys of a head; None for ``width / heads``.
        value_dim: width E of the values of a head; None for ``head_dim``.
        qk_norm: RMS-normalize queries and keys per head, before the positions.
        gate: output gate: ``none``, ``linear``, ``sigmoid`` or ``silu``.
        rope_theta: base of the rotary frequencies; None for no positions.
        rope_fraction: share of each head that is rotated; the remaining part has no position.

    Attributes:
        logits: ``(H, reach - 1)``, one per distance 1, 2, ...; initially they fall with the distance, which gives a
            window. A cast of the module leaves them in fp32 or better: logits that it made equal would choose other
            distances.
        noise: Gumbel noise of the current step, of the shape and dtype of ``logits``; evaluation ignores it.

    Raises:
        ValueError: on numbers that are impossible, an unknown estimator, or heads that do not fit together.
    """

    logits: Tensor
    noise: Tensor
    kept: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        block: int = 32,
        top_k: int = 8,
        reach: int = 16,
        global_blocks: int = 1,
        estimator: str = "straight_through",
        temperature: float = 1.0,
        frozen: bool = False,
        seed: int = 0,
        kv_heads: KvHeads = None,
        head_dim: HeadDim = None,
        value_dim: ValueDim = None,
        qk_norm: QkNorm = False,
        gate: Gate = "none",
        rope_theta: RopeTheta = 10000.0,
        rope_fraction: RopeFraction = 1.0,
    ) -> None:
        super().__init__(
            width, heads, depth, layer, kv_heads=kv_heads, head_dim=head_dim, value_dim=value_dim, qk_norm=qk_norm,
            rope_theta=rope_theta,
            rope_fraction=rope_fraction, gate=gate,
        )  # fmt: skip
        _check(top_k, reach, global_blocks, estimator, temperature)
        self.block, self.top_k, self.global_blocks = block, top_k, global_blocks
        self.temperature, self.seed = temperature, seed
        self.samples, self.frozen = ESTIMATORS[estimator], False
        self.reachable = BlockPattern(block, partial(_reachable, reach=reach, global_blocks=global_blocks))
        self.logits = nn.Parameter(_start(heads, reach))
        self.register_buffer("noise", torch.zeros(heads, reach - 1, dtype=torch.float32))
        self.start_step(0)
        self._fixed: tuple[Any, BlockPattern] | None = None
        self.register_load_state_dict_post_hook(_loaded)
        if frozen:
            self.freeze()

    @property
    def pattern(self) -> BlockPattern:
        """Hard pattern of this training step, or of evaluation, which is cached with its layouts."""
        if torch.compiler.is_compiling() or (self.training and not self.frozen):
            return self._pattern(self.kept if self.frozen else self._best())
        chosen = self.kept if self.frozen else self.logits
        state = None if chosen.is_inference() else (id(chosen), chosen.dtype, chosen.device, chosen._version)
        if self._fixed is None or state is None or self._fixed[0] != state:  # loaded, moved or changed since
            self._fixed = state, self._pattern(self.kept if self.frozen else self._best())
        return self._fixed[1]

    def train(self, mode: bool = True) -> LearnedSparseAttention:
        """Sets the training mode, as :meth:`torch.nn.Module.train`; evaluation chooses the distances anew."""
        self._fixed = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LearnedSparseAttention:
        if recurse:
            for child in self.children():
                child._apply(fn)
        return super()._apply(partial(_unnarrowed, fn), recurse=False)  # its own tensors: logits and what they choose

    def freeze(self) -> None:
        """Fixes the pattern: it is no longer trained, and its layouts are cached.

        The logits become a buffer of the same name, so that state dicts fit both ways. An optimizer that was made
        before still holds the parameter that they were.
        """
        if not self.frozen:
            logits = self.logits.detach()
            del self.logits
            self.register_buffer("logits", logits)
            self.frozen = True
        self.register_buffer("kept", self._best(), persistent=False)  # integers: another dtype cannot change the choice

    def start_step(self, step: int) -> None:
        """Draws the Gumbel noise of a step from (seed, layer, step)."""
        if not self.samples:
            return
        head, place = (torch.arange(n, device=self.noise.device) for n in self.noise.shape)
        number = hashed(head[:, None], self.seed, self.layer, step, place) >> 11
        uniform = (number.double() + 0.5) / 2**52
        self.noise.copy_(-(-uniform.log()).log())

    def mix(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Attends to the blocks of the hard pattern, with a gradient to the logits where these are trained."""
        if not torch.is_grad_enabled() or not self.logits.requires_grad:
            return super().mix(q, k, v, call)
        if call.cache is None:
            return self._trained(q, k, v, documents=call.documents)
        view = call.cache.append(k, v, call.lengths)
        return self._trained(q, view.keys, view.values, documents=view.documents)

    def _trained(self, q: Tensor, k: Tensor, v: Tensor, *, documents: Tensor | None = None) -> Tensor:
        bias = self._bias(-(-k.shape[1] // self.block))
        if self.samples:
            return self.pattern.whole(q, k, v, documents=documents, block_bias=bias - bias.detach())
        hard = self.pattern.whole(q, k, v, documents=documents)
        values = (x.detach() for x in (q, k, v))
        soft = self.reachable.whole(*values, documents=documents, block_bias=bias)
        return hard + (soft - soft.detach())

    def own_parameters(self) -> tuple[int, int]:
        return 0, 0 if self.frozen else self.logits.numel()

    def _scores(self) -> Tensor:
        """Logits, in training with the noise, ``(H, reach - 1)`` in fp32 or better."""
        logits = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        noisy = self.training and self.samples and not self.frozen
        return logits + self.temperature * self.noise if noisy else logits

    def _best(self) -> Tensor:
        """Distances that are kept, ``(H, top_k)``."""
        scores = self._scores().detach()
        if scores.is_meta:  # what a cost is asked of, before there are values: those at the start
            scores = _start(self.heads, scores.shape[1] + 1, "cpu")
        return scores.argsort(dim=-1, descending=True, stable=True)[:, : self.top_k] + 1

    def _pattern(self, distances: Tensor) -> BlockPattern:
        return BlockPattern(self.block, partial(_at_distances, distances=distances, global_blocks=self.global_blocks))

    def _bias(self, count: int) -> Tensor:
        """Relaxed choice as logits of pairs of blocks, ``(1, H, count, count)``; 0 for what is always read."""
        gates = F.logsigmoid(self._scores() / self.temperature)
        gates = torch.cat([torch.zeros_like(gates[:, :1]), gates], 1)
        place = torch.arange(count, device=gates.device)
        distance = (place[:, None] - place).clamp(0, gates.shape[1] - 1)
        return gates[:, torch.where(place < self.global_blocks, 0, distance)][None]


def _start(heads: int, reach: int, device: str | None = None) -> Tensor:
    """Logits ``(H, reach - 1)`` that fall with the distance: a window, until there is evidence for something else."""
    return SLOPE * torch.arange(1 - reach, 0, dtype=torch.float32, device=device).flip(0).repeat(heads, 1)


def _at_distances(blocks: Tensor, *, distances: Tensor, global_blocks: int) -> Tensor:
    """The own block, those at ``distances (H or 1, K)`` and the first ones, ``(H or 1, N, 1 + K + global_blocks)``."""
    own, first = blocks[:, None], torch.arange(global_blocks, device=blocks.device)
    near = own - distances.to(blocks.device)[:, None]
    return torch.cat([x.expand(*near.shape[:2], -1) for x in (own, near, first)], -1)


def _reachable(blocks: Tensor, *, reach: int, global_blocks: int) -> Tensor:
    return _at_distances(
        blocks, distances=torch.arange(1, reach, device=blocks.device)[None], global_blocks=global_blocks
    )


def _unnarrowed(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``fn(x)``, but on its way to fewer bits than fp32 has a number keeps these."""
    moved = fn(x)
    if not moved.is_floating_point() or moved.dtype == torch.promote_types(moved.dtype, torch.float32):
        return moved
    return x.to(moved.device, torch.float32)


def _loaded(mixer: Any, incompatible: Any) -> None:
    if mixer.frozen:
        mixer.freeze()


def _check(top_k: int, reach: int, global_blocks: int, estimator: str, temperature: float) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r}: expected one of {', '.join(ESTIMATORS)}.")
    if not 1 <= top_k < reach:
        raise ValueError(
            f"top_k={top_k} of reach={reach}: expected 1 to reach - 1 distances, the own block is read besides."
        )
    if global_blocks < 0 or not temperature > 0:
        raise ValueError(f"global_blocks={global_blocks} and temperature={temperature}: expected >= 0 and > 0.")
