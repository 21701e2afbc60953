"""Caches of the mixers: keys and values, or a state of constant size."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import softmax_attention, softmax_attention_step


class StateCache:
    """A state that does not grow: ``state`` (B, H, D, E) in fp32 or better, and the tokens seen, ``lengths`` (B,)."""

    def __init__(
        self, shape: tuple[int, int, int, int], device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        wide = torch.promote_types(dtype or torch.float32, torch.float32)
        self.state = torch.zeros(shape, dtype=wide, device=device)
        self.lengths = torch.zeros(shape[0], dtype=torch.long, device=device)

    def nbytes(self) -> int:
        """Bytes of the state."""
        return self.state.nbytes


class KeyValueCache:
    """Keys and values of all tokens, ``(B, capacity, G, D)``, row i valid up to ``lengths[i]``; grows when full."""

    def __init__(
        self,
        batch_size: int,
        capacity: int,
        heads: int,
        width: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self.keys = torch.zeros(batch_size, capacity, heads, width, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
        self._longest = 0  # on the host, so that a step never waits for the device
        self._even = True  # all rows have the same length

    def nbytes(self) -> int:
        """Bytes of the valid part, were all rows as long as the longest."""
        return 2 * self.keys[:, : self._longest].numel() * self.keys.element_size()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        """Add the piece's keys and values and return the attention of its queries, ``(B, T, H, D)``.

        Args:
            q: ``(B, T, H, D)``. k, v: ``(B, T, G, D)``. lengths: ``(B,)`` true lengths of the piece, None for all T.
        """
        length, before = q.shape[1], self.lengths
        self._write(k.detach(), v.detach())
        if length == 1:
            stop = self._longest + 1
            keys, values = self.keys[:, :stop], self.values[:, :stop]
            output = softmax_attention_step(q[:, 0], keys, values, before + 1)[:, None]
        elif self._longest == 0:
            output = softmax_attention(q, k, v)
        elif self._even:
            stop = self._longest + length
            output = softmax_attention(q, self.keys[:, :stop].to(q.dtype), self.values[:, :stop].to(q.dtype))
        else:
            output = self._attend_uneven(q, before)
        self._advance(length, lengths)
        return output

    def _write(self, k: Tensor, v: Tensor) -> None:
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
            extra = max(needed, 2 * capacity) - capacity
            pad = self.keys.new_zeros(self.keys.shape[0], extra, *self.keys.shape[2:])
            self.keys, self.values = torch.cat([self.keys, pad], 1), torch.cat([self.values, pad], 1)

    def _attend_uneven(self, q: Tensor, before: Tensor) -> Tensor:
        """Align the rows at their ends, where the kernel expects the queries, and hide what lies before a row."""
        total = self._longest + q.shape[1]
        source = torch.arange(total, device=q.device)[None] - (self._longest - before)[:, None]
        rows = torch.arange(q.shape[0], device=q.device)[:, None]
        keys, values = (x[rows, source.clamp(min=0)].to(q.dtype) for x in (self.keys, self.values))
        return softmax_attention(q, keys, values, documents=(source >= 0).long())

    def _advance(self, length: int, lengths: Tensor | None) -> None:
        if lengths is None:
            self.lengths = self.lengths + length
            self._longest += length
            return
        self.lengths = self.lengths + lengths.to(self.lengths)
        ends = self.lengths.tolist()
        self._longest, self._even = max(ends), min(ends) == max(ends)
