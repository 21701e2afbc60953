"""Caches of the mixers: keys and values of all tokens, or a state of constant size."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels import linear_attention, linear_attention_step, softmax_attention, softmax_attention_step
from zoo_kernels.linear import NormalizedState


class Whole(Protocol):
    """Attention of ``q (B, Tq, H, D)`` over ``k, v (B, Tk, G, D)``, aligned at the end where Tq < Tk."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, documents: Tensor | None = None) -> Tensor:
        """``documents`` is ``(B, Tk)``; positions, blocks and strides count from the start of a document."""


class Step(Protocol):
    """Attention of one query per row, ``(B, H, D)``, over caches ``(B, capacity, G, D)``."""

    def __call__(self, q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor) -> Tensor:
        """``lengths (B,)`` counts the tokens seen in each row, the query's own included."""


def real_tokens(lengths: Tensor, x: Tensor) -> Tensor:
    """``(B, T)`` for a piece ``x (B, T, ...)``: True for tokens, False for padding behind ``lengths (B,)``."""
    return torch.arange(x.shape[1], device=x.device)[None] < lengths.to(x.device)[:, None]


class StateCache:
    """State of constant size, in fp32 or better, and the number of tokens seen.

    Attributes:
        state: ``(B, H, D, E)``.
        normalizer: ``(B, H, D)``, for normalized attention.
        lengths: ``(B,)``.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        normalize: bool = False,
    ) -> None:
        wide = torch.promote_types(dtype or torch.float32, torch.float32)
        self.state = torch.zeros(shape, dtype=wide, device=device)
        self.normalizer = self.state.new_zeros(shape[:3]) if normalize else None
        self.lengths = torch.zeros(shape[0], dtype=torch.long, device=device)

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return type(self).__name__, *self.state.shape[1:], self.normalizer is not None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the state."""
        return self.state.dtype

    def nbytes(self) -> int:
        """Bytes of the state and its normalizer."""
        return self.state.nbytes + (0 if self.normalizer is None else self.normalizer.nbytes)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None,
        lengths: Tensor | None,
        *,
        scale: float = 1.0,
        eps: float = 1e-6,
        algorithm: str = "auto",
        wide: bool = False,
    ) -> Tensor:
        """Computes the output ``(B, T, H, E)`` of a piece, whose tokens are added to the state.

        Args:
            q: queries ``(B, T, H, D)``.
            k: keys ``(B, T, H, D)``.
            v: values ``(B, T, H, E)``.
            log_decay: None, ``(H,)`` or ``(B, T, H)``.
            lengths: ``(B,)`` true lengths of the piece, None for all T; padding is neither added nor decays the state.
            scale: as in :func:`zoo_kernels.linear_attention`.
            eps: as in :func:`zoo_kernels.linear_attention`.
            algorithm: as in :func:`zoo_kernels.linear_attention`.
            wide: as in :func:`zoo_kernels.linear_attention`.
        """
        batch, length = q.shape[:2]
        normalize = self.normalizer is not None
        state = self.state if self.normalizer is None else NormalizedState(self.state, self.normalizer)
        if length == 1 and lengths is None and not torch.is_grad_enabled():  # in place, and without a gradient
            self.lengths = self.lengths + 1
            decay = log_decay[:, 0] if log_decay is not None and log_decay.dim() == 3 else log_decay
            return linear_attention_step(
                q[:, 0], k[:, 0], v[:, 0], decay, state, scale=scale, normalize=normalize, eps=eps, wide=wide
            )[:, None]  # fmt: skip
        advance = torch.full_like(self.lengths, length)
        if lengths is not None:
            advance = lengths.to(self.lengths)
            real = real_tokens(lengths, q)
            k, v = (x.masked_fill(~real[..., None, None], 0) for x in (k, v))
            if log_decay is not None:
                log_decay = log_decay.expand(batch, length, -1).masked_fill(~real[..., None], 0)
        y, after = linear_attention(
            q, k, v, log_decay, scale=scale, normalize=normalize, eps=eps, initial_state=state, return_state=True,
            algorithm=algorithm, wide=wide,
        )  # fmt: skip
        if isinstance(after, NormalizedState):
            self.state, self.normalizer = (x.detach().to(self.dtype) for x in (after.s, after.z))
        elif after is not None:
            self.state = after.detach().to(self.dtype)
        self.lengths = self.lengths + advance
        return y


class KeyValueCache:
    """Keys ``(B, capacity, G, D)`` and values ``(B, capacity, G, E)`` of all tokens.

    Row i is valid up to ``lengths[i]``. It grows when it is full. Without a ``value_width`` E is D.
    """

    overwrites = False  # whether a piece takes the slots of earlier tokens that its queries still read

    def __init__(
        self,
        batch_size: int,
        capacity: int,
        heads: int,
        width: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        value_width: int | None = None,
    ) -> None:
        self.keys = torch.zeros(batch_size, capacity, heads, width, device=device, dtype=dtype)
        self.values = self.keys.new_zeros(batch_size, capacity, heads, width if value_width is None else value_width)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self._longest = 0  # on the host, so that a step never waits for the device
        self._behind = [0]  # tokens that rows are shorter than the longest, each number once; on the host too

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to agree with the mixer."""
        return type(self).__name__, *self.keys.shape[2:], self.values.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of keys and values."""
        return self.keys.dtype

    @property
    def held(self) -> list[int]:
        """Numbers of tokens that rows hold, each once; known without a wait for the device."""
        return [self._longest - behind for behind in self._behind]

    @property
    def _even(self) -> bool:
        """Whether all rows have the same length."""
        return len(self._behind) == 1

    def nbytes(self) -> int:
        """Bytes of the valid part, were all rows as long as the longest."""
        used = self._slots(self._longest)
        return sum(held[:, :used].numel() * held.element_size() for held in (self.keys, self.values))

    def _slots(self, length: int) -> int:
        """That so many tokens take."""
        return length

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        lengths: Tensor | None,
        whole: Whole = softmax_attention,
        step: Step = softmax_attention_step,
    ) -> Tensor:
        """Adds the piece's keys and values and returns the attention of its queries, ``(B, T, H, E)``.

        Args:
            q: queries ``(B, T, H, D)``.
            k: keys ``(B, T, G, D)``.
            v: values ``(B, T, G, E)``.
            lengths: ``(B,)`` true lengths of the piece, None for all T.
            whole: what the mixer computes over a sequence: with gradients, or for more than one token.
            step: the same for the last token alone, over the slots in use; it has no gradient.
        """
        length, before = q.shape[1], self.lengths
        alone = length == 1 and not torch.is_grad_enabled()
        earlier = None if alone else self._earlier()
        self._write(k.detach(), v.detach(), lengths)
        if alone:
            stop = self._slots(self._longest + 1)
            output = step(q[:, 0], self.keys[:, :stop], self.values[:, :stop], before + 1)[:, None]
        elif not self._longest:
            output = whole(q, k, v)
        elif earlier is None:
            stop = self._longest + length
            output = whole(q, self.keys[:, :stop].to(q.dtype), self.values[:, :stop].to(q.dtype))
        else:
            keys, values, hidden = earlier
            keys, values = torch.cat([keys.to(k.dtype), k], 1), torch.cat([values.to(v.dtype), v], 1)
            shown = torch.cat([~hidden, hidden.new_ones(q.shape[:2])], 1).long()
            output = whole(q, keys, values, documents=None if self._even else shown)
        self._advance(length, lengths)
        return output

    def _earlier(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Keys and values in order, all rows ending at one column, and which columns lie before a row.

        None where there are none, or where they can be read together with the piece once it is written.
        """
        if not self._longest or (self._even and not self.overwrites and not torch.is_grad_enabled()):
            return None
        columns = self._slots(self._longest)
        place = torch.arange(columns, device=self.keys.device)[None] + (self.lengths - self._longest)[:, None]
        rows = torch.arange(len(place), device=place.device)[:, None]
        slots = place.clamp(min=0)
        return self.keys[rows, slots], self.values[rows, slots], place < 0

    def _write(self, k: Tensor, v: Tensor, lengths: Tensor | None) -> None:
        length = k.shape[1]
        self._reserve(self._longest + length)
        if self._even:
            span = slice(self._longest, self._longest + length)
            self.keys[:, span], self.values[:, span] = k.to(self.keys.dtype), v.to(self.keys.dtype)
            return
        rows = torch.arange(k.shape[0], device=k.device)[:, None]
        columns = self.lengths[:, None] + torch.arange(length, device=k.device)
        self.keys[rows, columns], self.values[rows, columns] = k.to(self.keys.dtype), v.to(self.keys.dtype)

    def _reserve(self, needed: int) -> None:
        capacity = self.keys.shape[1]
        if needed > capacity:
            self._extend(max(needed, 2 * capacity) - capacity)

    def _extend(self, extra: int) -> None:
        """Allocate so many slots more."""
        self.keys, self.values = (F.pad(held, (0, 0, 0, 0, 0, extra)) for held in (self.keys, self.values))

    def _advance(self, length: int, lengths: Tensor | None) -> None:
        if lengths is None:
            self.lengths = self.lengths + length
            self._longest += length
            return
        self.lengths = self.lengths + lengths.to(self.lengths)
        ends = set(self.lengths.tolist())
        self._longest = max(ends)
        self._behind = sorted(self._longest - end for end in ends)
