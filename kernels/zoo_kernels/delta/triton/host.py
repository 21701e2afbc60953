"""Host side of the Triton kernels of delta attention: buffers, tiles and launches.

Whatever is erased, all of a call is made of readers (queries and, if something is erased, reads) and writers (erases
with what is erased, u, and keys with what is written, v; with beta one writer, keys with u, for both). `pairs` computes
what readers meet of each writer in a chunk, and the weighted copies with which chunks meet the state; `solve` the
inverse of a chunk's system, and `apply` makes of it w and base, with which `walk` finds ``u = base - w S`` while it
carries S over the chunks. Backwards the same walk, from the last chunk, finds the gradients of the reads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo_kernels.chunks import FORGOTTEN
from zoo_kernels.delta.arguments import DeltaArguments, DeltaToken
from zoo_kernels.delta.triton.configs import CHUNK, LEVELS, TABLE
from zoo_kernels.delta.triton.pairs import pairs_kernel
from zoo_kernels.delta.triton.solve import apply_kernel, solve_kernel
from zoo_kernels.delta.triton.step import delta_step_kernel
from zoo_kernels.delta.triton.walk import outputs_kernel, walk_kernel
from zoo_kernels.launch import Config, choose, launch


class Writer(NamedTuple):
    """A writer: its rows as they were given and as the state after the chunk keeps them, and what readers meet."""

    y: Tensor
    kept: Tensor
    of_q: Tensor
    of_p: Tensor


class HostCall:
    """One call: its arrays, and the launches that all passes share."""

    def __init__(self, x: DeltaArguments) -> None:
        self.q, self.k, self.v = x.q.contiguous(), x.k.contiguous(), x.v.contiguous()
        self.batch, self.length, self.heads, self.value = x.v.shape
        self.width, self.scale = x.q.shape[-1], x.scale
        self.chunks = -(-self.length // CHUNK)
        self.rows = self.batch * self.heads
        read, erase = (self.k, self.k) if x.beta is not None else (x.read, x.erase)
        self.read = None if read is None else read.contiguous()
        self.erase = None if erase is None else erase.contiguous()
        self.beta = None if x.beta is None else x.beta.contiguous()
        self.state, self.documents = x.state.contiguous(), None if x.documents is None else x.documents.contiguous()
        self.kind, self.decay = decay_of(x.log_decay, 4)
        self.precision = "ieee" if x.q.dtype == torch.float32 else "tf32"

    def tokens(self, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An array ``(B, T, H, width)``."""
        return torch.empty(self.batch, self.length, self.heads, width, dtype=dtype, device=self.q.device)

    def states(self) -> Tensor:
        """An array for the state beside each chunk, of which bf16 has the range and fp16 has not."""
        shape = self.batch, self.chunks, self.heads, self.width, self.value
        dtype = torch.bfloat16 if self.q.dtype == torch.bfloat16 else torch.float32
        return torch.empty(shape, dtype=dtype, device=self.q.device)

    def config(self, kernel: str, by_kind: bool = False) -> Config:
        """Tiles of a kernel; ``by_kind``: it has others for decays per channel."""
        kernel += "_channels" if by_kind and self.kind == 3 else ""
        return choose(TABLE, kernel, self.q.device, self.q.dtype, max(self.width, self.value))

    def flags(self) -> dict[str, Any]:
        """Constants of the kernels that meet the decay."""
        return {
            "KIND": self.kind,
            "DOCUMENTS": self.documents is not None,
            "READS": self.read is not None,
        }

    def launch(self, kernel: Any, config: Config, tiles: int, *arguments: Any, **constants: Any) -> None:
        """Launches a kernel with so many tiles of columns for each chunk of each head."""
        grid = (tiles * self.chunks * self.rows,)
        launch(kernel, grid, *arguments, config=config, PRECISION=self.precision, CHUNK=CHUNK, **constants)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tokens, chunks and heads."""
        return self.length, self.chunks, self.heads


def decay_of(log_decay: Tensor | None, by_channel: int) -> tuple[int, Tensor | None]:
    """Kind of the decay and its numbers: 0 none, 1 per head, 2 per token, 3 per channel (of ``by_channel`` sizes)."""
    if log_decay is None:
        return 0, None
    if log_decay.dim() == by_channel:
        return 3, log_decay.contiguous()
    return 1 if log_decay.dim() == 1 else 2, log_decay.float().clamp(FORGOTTEN, 0).contiguous()


class Prepared:
    """What the chunks of a call make of its arrays before any state is known."""

    def __init__(self, call: HostCall) -> None:
        self.call = call
        self.queries = call.tokens(call.width)
        self.reads = self.queries if call.read is None else call.tokens(call.width)
        self.kept = torch.empty(
            call.batch, call.chunks, call.heads, call.width, dtype=torch.float32, device=call.q.device
        )  # fmt: skip
        self.erases = None if call.erase is None else self._pairs(call.erase, True)
        one = call.beta is not None and self.erases is not None
        self.writes = None if one else self._pairs(call.k, self.erases is None)
        self.inverse = None if self.erases is None else self._solve(self.erases)

    def _pairs(self, y: Tensor, first: bool) -> Writer:
        call, config = self.call, self.call.config("pairs", by_kind=True)
        read = call.q if call.read is None else call.read
        of_q, kept = call.tokens(CHUNK), call.tokens(call.width)
        of_p = of_q if call.read is None else call.tokens(CHUNK)
        decay, documents = (of_q if a is None else a for a in (call.decay, call.documents))
        heads = call.q.shape[2], read.shape[2], y.shape[2]
        call.launch(
            pairs_kernel, config, 1, call.q, read, y, decay, documents, of_q, of_p, self.queries, self.reads, kept,
            self.kept, *call.sizes, *heads, LEVELS, call.scale, D=call.width,
            TILES=-(-call.width // config.tiles["TILE"]), FIRST=first, **call.flags(),
        )  # fmt: skip
        return Writer(y, kept, of_q, of_p)

    def _solve(self, erases: Writer) -> Tensor:
        call = self.call
        inverse = call.tokens(CHUNK)
        beta = inverse if call.beta is None else call.beta
        call.launch(
            solve_kernel, call.config("solve"), 1, erases.of_p, beta, inverse, *call.sizes,
            MERGES=(CHUNK // 16).bit_length() - 1, BETA=call.beta is not None,
        )  # fmt: skip
        return inverse

    def apply(self, x: Tensor, pairs: Tensor | None = None, *, transposed: bool = False) -> Tensor:
        """The inverse times ``x``; with ``pairs``, minus the inverse times these times ``x``."""
        call, config, inverse = self.call, self.call.config("apply"), self.inverse
        assert inverse is not None
        out, tiles = call.tokens(x.shape[-1]), -(-x.shape[-1] // config.tiles["TILE"])
        call.launch(
            apply_kernel, config, tiles, inverse, inverse if pairs is None else pairs, x, out, *call.sizes,
            X=x.shape[-1], TILES=tiles, PAIRS=pairs is not None, TRANSPOSED=transposed,
        )  # fmt: skip
        return out

    def walk(
        self,
        initial: Tensor,
        solved: tuple[Tensor, Tensor, Tensor] | None,
        written: tuple[Tensor, Tensor] | None,
        *,
        reverse: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Walks over the chunks.

        Args:
            initial: state before the walk.
            solved: w, base and y of ``u = base - w S``, which adds ``y^T u`` to the state.
            written: x and z, which add ``x^T z``.
            reverse: from the last chunk to the first.

        Returns:
            u, or an array of nothing; the state before each chunk of the walk; the state after it.
        """
        call, config = self.call, self.call.config("walk")
        states, final = call.states(), torch.empty_like(initial)
        u = final if solved is None else call.tokens(call.value)
        w, base, y = (u, u, u) if solved is None else solved
        x, z = (u, u) if written is None else written
        tiles = -(-call.value // config.tiles["TILE"])
        grid = (tiles * call.rows,)
        launch(
            walk_kernel, grid, w, base, y, x, z, self.kept, initial, u, states, final, *call.sizes, config=config,
            D=call.width, D_PADDED=max(16, 1 << (call.width - 1).bit_length()), E=call.value, TILES=tiles,
            SOLVES=solved is not None, WRITES=written is not None, REVERSE=reverse, PRECISION=call.precision,
            CHUNK=CHUNK,
        )  # fmt: skip
        return u, states, final

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what is erased, or written with beta; the state before each chunk; the last state."""
        call, solved, written = self.call, None, None
        if self.writes is not None:
            written = self.writes.kept, call.v
        if self.erases is not None:
            pairs = None if self.writes is None else self.writes.of_p
            solved = self.apply(self.reads), self.apply(call.v, pairs), self.erases.kept
        return self.walk(call.state, solved, written)

    def backward(self, grad_output: Tensor, grad_final: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the reads, of the state behind each chunk, and of the state before token 0."""
        solved = None
        if self.erases is not None:
            base = self.apply(grad_output, self.erases.of_q, transposed=True)
            solved = self.apply(self.erases.kept, transposed=True), base, self.reads
        return self.walk(grad_final, solved, (self.queries, grad_output), reverse=True)

    def read_out(
        self, x: Tensor, states: Tensor, *products: tuple[Tensor, Tensor], dtype: torch.dtype, transposed: bool = False
    ) -> Tensor:
        """``x S`` and the sum of one or two products of pairs and values, ``(B, T, H, E)``."""
        call, config = self.call, self.call.config("outputs")
        out, tiles = call.tokens(call.value, dtype), -(-call.value // config.tiles["TILE"])
        call.launch(
            outputs_kernel, config, tiles, x, states, *products[0], *products[-1], out, *call.sizes, D=call.width,
            PARTS=-(-call.width // config.tiles["TILE_D"]), E=call.value, TILES=tiles, TWO=len(products) > 1,
            TRANSPOSED=transposed,
        )  # fmt: skip
        return out

    def written(self, u: Tensor) -> list[tuple[Writer, Tensor]]:
        """Writers with their values."""
        erased = [] if self.erases is None else [(self.erases, u)]
        return erased + ([] if self.writes is None else [(self.writes, self.call.v)])


def triton_forward(x: DeltaArguments) -> tuple[Tensor, Tensor]:
    """Output in the type of q and the state after the last token."""
    made = Prepared(HostCall(x))
    u, states, final = made.forward()
    products = [(writer.of_q, values) for writer, values in made.written(u)]
    return made.read_out(made.queries, states, *products, dtype=x.q.dtype), final


def triton_step(x: DeltaToken) -> Tensor:
    """One token; the state, fp32 and contiguous, moves on in place."""
    batch, heads, value = x.v.shape
    width, rule = x.q.shape[-1], 1 if x.beta is not None else 0 if x.read is None else 2
    q, k, v = x.q.contiguous(), x.k.contiguous(), x.v.contiguous()
    read, erase = (q if a is None else a.contiguous() for a in (x.read, x.erase))
    beta = q if x.beta is None else x.beta.contiguous()
    kind, out = 0 if x.log_decay is None else x.log_decay.dim(), torch.empty_like(v)
    decay = out if x.log_decay is None else x.log_decay.contiguous()
    config = choose(TABLE, "delta_step", q.device, q.dtype, max(width, value))
    tiles = -(-value // config.tiles["TILE"])
    launch(
        delta_step_kernel, (batch * heads * tiles,), q, k, v, read, erase, beta, decay, x.state, out, heads,
        q.shape[1], read.shape[1], erase.shape[1], x.scale, config=config, D=width,
        D_PADDED=max(16, 1 << (width - 1).bit_length()), E=value, TILES=tiles, KIND=kind, RULE=rule,
    )  # fmt: skip
    return out
