"""The contract of every token mixer.

Letters: B batch, T time, C model width, H query heads, G key heads, D head width, E value width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from zoo.mixers.caches.base import Cache
from zoo_kernels.softmax.mask import document_positions


@dataclass(frozen=True)
class Cost:
    """Cost of a layer for one sequence; FLOPs count a multiply and an add as two.

    Attributes:
        parameters: number of trained parameters.
        flops_per_token: forward FLOPs per token, averaged over a training sequence of the context length.
        decode_flops_per_token: FLOPs of the next token after the context.
        cache_bytes: bytes of the cache of a sequence of the context length.
    """

    parameters: int
    flops_per_token: float
    decode_flops_per_token: float
    cache_bytes: int

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.flops_per_token + other.flops_per_token,
            self.decode_flops_per_token + other.decode_flops_per_token,
            self.cache_bytes + other.cache_bytes,
        )


class Mixer(nn.Module, ABC):
    """Causal token mixer of one layer: ``(B, T, C) -> (B, T, C)``.

    A subclass owns its projections, positions, norm and gate, sets their initial values, and calls one kernel. The
    projection back to the model width is called ``out``.
    """

    out: nn.Linear
    uses_separators: bool = False  # whether the decoder has to say which tokens are separators

    def __init__(self, width: int, heads: int, depth: int, layer: int) -> None:
        super().__init__()
        for name, value in (("width", width), ("heads", heads)):
            if value < 1:
                raise ValueError(f"{name}={value}: expected at least 1.")
        if not 0 <= layer < depth:
            raise ValueError(f"layer={layer} is outside 0..{depth - 1} for depth={depth}.")
        self.width, self.heads, self.depth, self.layer = width, heads, depth, layer

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        separators: Tensor | None = None,
        cache: Any = None,
        lengths: Tensor | None = None,
        carry: dict[str, Any] | None = None,
    ) -> Tensor:
        """Mixes tokens: ``(B, T, C) -> (B, T, C)``.

        Gradients of the outputs are exact for the tokens of the piece and for the parameters that it used, however long
        it is; what the cache held before is a constant.

        Args:
            x: hidden states ``(B, T, C)``.
            documents: ``(B, T)`` ids of packed documents, each contiguous; nothing crosses a boundary. Numbers that are
                not finite may reach other documents of their row, but no other row.
            separators: ``(B, T)`` bool, True at tokens that separate, for mixers that treat them in a special way;
                others ignore it.
            cache: cache from :meth:`new_cache`; the piece continues where the cache stands and is added to it.
            lengths: ``(B,)`` true lengths of a right-padded piece. Padding, be it NaN, does not influence other tokens;
                outputs on padding are unspecified.
            carry: values that the layers of one forward pass share, see :meth:`prepare`; None for a mixer used on its
                own.

        Raises:
            ValueError: if ``documents`` and ``cache`` are given together, or ``lengths`` without ``cache``; on other
                shapes or dtypes, on the cache of another batch, device or mixer, and on lengths outside 0..T where they
                lie on the CPU. Nothing has then been written to the cache.
        """

    @abstractmethod
    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Cache:
        """Returns an empty cache for ``batch_size`` rows; memory for ``capacity`` tokens is allocated at once.

        A cache of constant size ignores ``capacity``, and others grow beyond it.
        """

    @abstractmethod
    def cost(self, context: int, dtype: torch.dtype = torch.bfloat16) -> Cost:
        """Returns the closed-form cost at a context length; ``dtype`` is that of the cache."""

    def reads(self, context: int, block: int = 1) -> float:
        """Number of query-key pairs that a head computes for a sequence of the context length, averaged over heads.

        By default, all causal pairs. A mixer that computes no pairs, as linear attention, returns the number of pairs
        that would be as much work.

        Args:
            context: tokens of the sequence.
            block: tokens of the blocks that a kernel computes as a whole, for a pattern of single tokens.
        """
        return context * (context + 1) / 2

    def step_bytes(self, context: int, dtype: torch.dtype) -> float:
        """Bytes that the next token reads from a cache of ``dtype``, apart from states; by default, all of it."""
        return self.cost(context, dtype).cache_bytes

    def kept_numbers(self) -> int:
        """Numbers per token that the attention saves for the backward pass; by default, four times the width."""
        return 4 * self.width

    @property
    def head_widths(self) -> tuple[int, int]:
        """Numbers of a query and of a value of a head; here, an equal share of the width."""
        return self.width // self.heads, self.width // self.heads

    @property
    def window_reach(self) -> int | None:
        """Latest tokens that a token reads, its own included, where it reads no others but first ones; None: all."""
        return None

    @property
    def normalized(self) -> bool:
        """Whether the weights of each query sum to one, so that equal values are returned unchanged."""
        return False

    @torch.no_grad()
    def reset_parameters(self, std: float, out_std: float) -> None:
        """Draws the initial weight matrices from torch's global generator; other parameters are set by the constructor.

        A decoder calls this when it is built. A mixer whose matrices should start otherwise overrides it.

        Args:
            std: standard deviation of matrices that read the width of the model.
            out_std: standard deviation of ``out``, which writes to the residual stream.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=out_std if module is self.out else std)

    def start_step(self, step: int) -> None:
        """Redraws what is random; called in training before each optimizer step, on every rank alike."""

    def prepare(self, carry: dict[str, Any], x: Tensor, documents: Tensor | None = None, cache: Any = None) -> None:
        """Puts into ``carry`` what this mixer needs there, unless an earlier layer of the same pass has done so.

        A decoder makes one dictionary for each forward pass, lets all layers prepare it, and passes it to each of them.

        Args:
            carry: values that the layers of one pass share, by name.
            x: input of :meth:`forward`, of which only shape, device and dtype matter.
            documents: as in :meth:`forward`.
            cache: as in :meth:`forward`.
        """

    def hands_on(self, carry: dict[str, Any]) -> bool:
        """Whether :meth:`forward` puts values into ``carry`` for layers above, by what :meth:`prepare` has put there.

        Such a layer is not checkpointed: what it hands on is then kept.
        """
        return False

    def positions(self, x: Tensor, documents: Tensor | None, cache: Any) -> Tensor:
        """Position of each token in its document, ``(1 or B, T)``."""
        if documents is not None:
            return document_positions(documents)
        time = torch.arange(x.shape[1], device=x.device)[None]
        return time if cache is None else time + cache.lengths[:, None]

    def check_call(
        self,
        x: Tensor,
        documents: Tensor | None,
        cache: Any,
        lengths: Tensor | None,
        separators: Tensor | None = None,
    ) -> None:
        """Checks the arguments of :meth:`forward` before anything is computed or written; it never waits for a device.

        Raises:
            ValueError: see :meth:`forward`.
        """
        if documents is not None and cache is not None:
            raise ValueError("documents and cache were given together: a cache continues one document per row.")
        if lengths is not None and cache is None:
            raise ValueError("lengths was given without cache: pass documents, or mask the loss of padded rows.")
        self._check_input(x)
        batch, length = x.shape[:2]
        check_array("documents", documents, (batch, length), x)
        check_array("separators", separators, (batch, length), x)
        check_array("lengths", lengths, (batch,), x)
        if torch.compiler.is_compiling():
            return
        if cache is not None:
            self._check_cache(x, cache)
        if lengths is not None:
            _check_lengths(lengths, length)

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[-1] != self.width:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, tokens, width={self.width}).")
        weight = getattr(self.out, "weight", x)  # of whatever has taken its place
        if x.dtype == weight.dtype or not weight.is_floating_point():
            return
        kind = x.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            raise ValueError(f"x is of {x.dtype} and the weights of {weight.dtype}: convert one of them.")

    def _check_cache(self, x: Tensor, cache: Any) -> None:
        if getattr(cache, "kind", None) != self.cache_kind:
            raise ValueError(
                f"the cache is {getattr(cache, 'kind', type(cache).__name__)}, expected {self.cache_kind}: give each "
                "layer the cache that its own new_cache() made."
            )
        cache.check_piece(x)

    @cached_property
    def cache_kind(self) -> tuple[Any, ...]:
        """Kind of this mixer's caches, which tells them from those of other mixers."""
        return self.new_cache(1, 0, "meta").kind

    def extra_repr(self) -> str:
        """Describes the options of the mixer in ``print(model)``."""
        return f"width={self.width}, heads={self.heads}, layer={self.layer} of {self.depth}"


def check_array(name: str, given: Tensor | None, wanted: tuple[int, ...], x: Tensor) -> None:
    """Checks that ``given`` is None or a tensor of the shape ``wanted`` that is not of floats.

    Raises:
        ValueError: naming the array.
    """
    if given is None:
        return
    if not isinstance(given, Tensor):
        raise ValueError(f"{name} is a {type(given).__name__}: expected a tensor.")
    if given.shape != wanted:
        raise ValueError(f"{name} has shape {tuple(given.shape)}, expected {wanted} for x of shape {tuple(x.shape)}.")
    if given.is_floating_point():
        raise ValueError(f"{name} is of {given.dtype}: expected {'booleans' if name == 'separators' else 'integers'}.")


def _check_lengths(lengths: Tensor, length: int) -> None:
    if lengths.dtype == torch.bool:
        raise ValueError("lengths is of torch.bool: expected integers.")
    if lengths.device.type != "cpu":
        return
    if wrong := [n for n in lengths.tolist() if not 0 <= n <= length]:
        raise ValueError(
            f"lengths={lengths.tolist()}: expected the true length of each row of the piece, 0 to {length}; "
            f"not {', '.join(map(str, wrong))}."
        )
