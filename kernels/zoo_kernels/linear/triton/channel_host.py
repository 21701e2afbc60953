"""Host side of linear attention with a decay per channel in Triton: cutting the sequence, buffers and launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo_kernels.launch import launch
from zoo_kernels.linear.arguments import LinearArguments, LinearUpstream
from zoo_kernels.linear.triton.arrays import alignment, config_of, dense_rows, steps_of
from zoo_kernels.linear.triton.channel_gradients import channel_gradients_kernel, pair_gradients_kernel
from zoo_kernels.linear.triton.channels import channel_states_kernel, pairs_kernel, read_kernel
from zoo_kernels.linear.triton.host import combine

CHUNK = 64  # tokens, the same for all kernels of a call: one writes pairs that others read


class _Call:
    """What the kernels of one call share.

    Args:
        x: arguments of the call.
        segment: tokens of a segment; states are carried over each by itself, and combined.
    """

    def __init__(self, x: LinearArguments, segment: int) -> None:
        self.batch, self.length, self.heads, _ = x.q.shape
        assert x.log_decay is not None
        self.like, self.rows, self.scale = x.q, self.batch * self.heads, x.scale
        self.log_decay = x.log_decay.float().contiguous()
        self.documents = None if x.documents is None else x.documents.long().contiguous()
        self.chunks = -(-self.length // CHUNK)
        self.segment = max(segment // CHUNK, 1)
        self.segments = -(-self.chunks // self.segment)

    @property
    def _decays(self) -> tuple[Tensor, Tensor]:
        return self.log_decay, self.log_decay if self.documents is None else self.documents

    def _constants(self, align: int) -> dict[str, Any]:
        precision = "ieee" if self.like.dtype == torch.float32 else "tf32"
        documents = self.documents is not None
        return {"ALIGN": align, "DOCUMENTS": documents, "PRECISION": precision, "CHUNK": CHUNK}

    def _of_tokens(self, width: int, dtype: torch.dtype) -> Tensor:
        shape = self.batch, self.length, self.heads, width
        return torch.empty(shape, dtype=dtype, device=self.like.device)

    def pairs(self, x: Tensor, y: Tensor, *, decays: bool) -> Tensor:
        """Pairs ``(B, T, H, CHUNK)``, fp32; those above the diagonal are whatever was in memory."""
        out, align, width = self._of_tokens(CHUNK, torch.float32), alignment(x, y), x.shape[-1]
        config = config_of("channel_pairs", self.like, width)
        launch(
            pairs_kernel, (CHUNK // config.tiles["BLOCK"] * self.chunks * self.rows,), x, y, *self._decays, out,
            self.length, self.heads, self.chunks, self.scale, *steps_of(align, x, y), config=config, X=width,
            TILES=-(-width // config.tiles["TILE"]), DECAYS=decays, **self._constants(align),
        )  # fmt: skip
        return out

    def states(self, y: Tensor, z: Tensor, initial: Tensor, *, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """States before (behind, if ``reverse``) the chunks ``(chunks, B, H, D, E)``, and that beyond all of them."""
        starts, final = initial[None], torch.empty_like(initial)
        if self.segments > 1:
            starts = initial.new_empty(self.segments, *initial.shape)
            factors = initial.new_empty(self.segments, *initial.shape[:3])
            self._carry(y, z, initial, starts, factors, final, reverse, sums=True)
            combine(y, starts, factors, initial, final, reverse)
        states = initial.new_empty(self.chunks, *initial.shape)
        self._carry(y, z, starts, states, final, final, reverse, sums=False)
        return states, final

    def _carry(
        self,
        y: Tensor,
        z: Tensor,
        starts: Tensor,
        states: Tensor,
        factors: Tensor,
        final: Tensor,
        reverse: bool,
        sums: bool,
    ) -> None:
        width, value, align = y.shape[-1], z.shape[-1], alignment(y, z)
        config = config_of("channel_states", self.like, width, value)
        tall, tiles = -(-width // config.tiles["TILE_Y"]), -(-value // config.tiles["TILE"])
        launch(
            channel_states_kernel, (tall * tiles * self.segments * self.rows,), y, z, *self._decays, starts, states,
            factors, final, self.length, self.heads, self.chunks, self.segments, self.segment,
            self.scale if reverse else 1.0, *steps_of(align, y, z), config=config, Y=width, Z=value, TILES_Y=tall,
            TILES=tiles, SUMS=sums, REVERSE=reverse, **self._constants(align),
        )  # fmt: skip

    def read(
        self, x: Tensor, z: Tensor, pairs: Tensor, states: Tensor, dtype: torch.dtype, *, reverse: bool = False
    ) -> Tensor:
        """What queries read of values; if ``reverse``, the gradient of values, from keys and that of outputs."""
        width, value, align = x.shape[-1], z.shape[-1], alignment(x, z)
        config, out = config_of("read", self.like, width, value), self._of_tokens(value, dtype)
        tiles, tiles_x = -(-value // config.tiles["TILE"]), -(-width // config.tiles["TILE_X"])
        launch(
            read_kernel, (tiles * self.chunks * self.rows,), x, z, pairs, *self._decays, states, out, self.length,
            self.heads, self.chunks, 1.0 if reverse else self.scale, *steps_of(align, x, z), config=config, X=width,
            Z=value, TILES_X=tiles_x, TILES=tiles, REVERSE=reverse, **self._constants(align),
        )  # fmt: skip
        return out

    def through_pairs(self, q: Tensor, k: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of queries and keys through the pairs of different tokens, from those of the pairs, fp32."""
        width, align = q.shape[-1], alignment(q, k)
        config = config_of("pair_gradients", self.like, width)
        tiles = -(-width // config.tiles["TILE"])
        of_q, of_k = (self._of_tokens(width, torch.float32) for _ in range(2))
        launch(
            pair_gradients_kernel, (tiles * (CHUNK // config.tiles["BLOCK"]) * self.chunks * self.rows,), q, k,
            *self._decays, grad, of_q, of_k, self.length, self.heads, self.chunks, *steps_of(align, q, k),
            config=config, X=width, TILES=tiles, **self._constants(align),
        )  # fmt: skip
        return of_q, of_k

    def gradients(
        self, arrays: tuple[Tensor, ...], grad: Tensor, states: tuple[Tensor, Tensor], of_decays: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of queries, keys and log decays.

        Args:
            arrays: q, k, v and the gradient of the output.
            grad: gradients of the pairs.
            states: the states before the chunks, and the gradients of those behind them.
            of_decays: whether the log decays have a gradient; it is fp32.
        """
        q, k, v, _ = arrays
        width, value, align = q.shape[-1], v.shape[-1], alignment(*arrays)
        of_q, of_k = self.through_pairs(q, k, grad)
        to_q, to_k = (self._of_tokens(width, q.dtype) for _ in range(2))
        to_decay = self._of_tokens(width, torch.float32) if of_decays else None
        config = config_of("channel_gradients", self.like, width, value)
        tiles, tiles_z = -(-width // config.tiles["TILE"]), -(-value // config.tiles["TILE_Z"])
        launch(
            channel_gradients_kernel, (tiles * self.chunks * self.rows,), *arrays, *self._decays, grad, *states, of_q,
            of_k, to_q, to_k, of_q if to_decay is None else to_decay, self.length, self.heads, self.chunks, self.scale,
            *steps_of(align, *arrays), config=config, X=width, Z=value, TILES=tiles, TILES_Z=tiles_z,
            GRADIENT=of_decays, **self._constants(align),
        )  # fmt: skip
        return to_q, to_k, to_decay


def channel_forward(x: LinearArguments, segment: int) -> tuple[Tensor, Tensor]:
    """Computes the output and the final state, in segments of ``segment`` tokens."""
    call = _Call(x, segment)
    q, k, v = (dense_rows(array) for array in (x.q, x.k, x.v))
    states, final = call.states(k, v, x.state.contiguous())
    return call.read(q, v, call.pairs(q, k, decays=True), states, x.dtype), final


def channel_backward(
    x: LinearArguments, up: LinearUpstream, segment: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Computes gradients of q, k, v, the state and, if asked for, each log decay ``(B, T, H, D)``.

    What the forward pass computed is computed again: nothing is kept between the passes.
    """
    call = _Call(x, segment)
    q, k, v, do = (dense_rows(array) for array in (x.q, x.k, x.v, up.grad_output))
    states, _ = call.states(k, v, x.state.contiguous())
    behind, to_state = call.states(q, do, up.grad_final.contiguous(), reverse=True)
    to_v = call.read(k, do, call.pairs(q, k, decays=True), behind, v.dtype, reverse=True)
    of_pairs = call.pairs(do, v, decays=False)
    to_q, to_k, to_decay = call.gradients((q, k, v, do), of_pairs, (states, behind), up.decay_gradient)
    return to_q, to_k, to_v, to_state, to_decay
