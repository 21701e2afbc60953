"""Host side of the Triton kernels of linear attention: cutting the sequence, buffers, strides, tiles and launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoo_kernels.launch import Config, launch
from zoo_kernels.linear.chunked import prefix_scan
from zoo_kernels.linear.triton.arrays import alignment, config_of, dense_rows, padded, steps_of
from zoo_kernels.linear.triton.chunk import mix_kernel
from zoo_kernels.linear.triton.gradients import decay_gradient, fitting
from zoo_kernels.linear.triton.parallel import parallel_kernel
from zoo_kernels.linear.triton.states import combine_kernel, states_kernel
from zoo_kernels.linear.triton.step import step_kernel

EXACT = 256  # tokens of a segment where the gradient of the log decay is asked for


class HostCall(NamedTuple):
    """Arguments that all kernels of one call share."""

    batch: int
    length: int
    heads: int
    log_decay: Tensor | None
    totals: Tensor | None
    documents: Tensor | None
    scale: float
    segment: int
    segments: int
    parallel: bool
    scan: bool

    @property
    def kind(self) -> int:
        """Kind of the decay: 0 for none, 1 for one per head, 2 for one per token."""
        return 0 if self.log_decay is None else 1 if self.log_decay.dim() == 1 else 2


def _call(
    q: Tensor,
    log_decay: Tensor | None,
    documents: Tensor | None,
    scale: float,
    algorithm: str,
    segment: int,
) -> HostCall:
    batch, length, heads = q.shape[:3]
    parallel, totals = algorithm == "parallel", None
    if log_decay is not None:
        if parallel and log_decay.dim() == 3:
            totals = log_decay.double().cumsum(1)
        log_decay = log_decay.float().contiguous()
    documents = None if documents is None else documents.long().contiguous()
    segments = -(-length // segment)
    return HostCall(
        batch, length, heads, log_decay, totals, documents, scale, segment, segments, parallel, algorithm == "scan"
    )  # fmt: skip


def _flags(call: HostCall, dtype: torch.dtype) -> dict[str, Any]:
    precision = "ieee" if dtype == torch.float32 else "tf32"
    return {"KIND": call.kind, "DOCUMENTS": call.documents is not None, "PRECISION": precision}


def _within(call: HostCall, config: Config) -> Config:
    """Chunks no longer than a segment of a scan; all other segments are longer than any."""
    fits = not call.scan or config.tiles["CHUNK"] <= call.segment
    return config if fits else config._replace(tiles=config.tiles | {"CHUNK": call.segment})


def mix(
    call: HostCall,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    state: Tensor,
    dtype: torch.dtype,
    *,
    reverse: bool = False,
    transposed: bool = False,
    final: Tensor | None = None,
    own: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Launches the mix kernel; with ``own``, also returns each token's part of the decay's gradient ``(B, T, H)``."""
    out = torch.empty(*x.shape[:3], z.shape[-1], dtype=dtype, device=x.device)
    like = z if own is None else own
    heavy = call.documents is not None or call.kind == 2 or own is not None or dtype != x.dtype
    name = ("parallel" if call.parallel else "mix") + ("_heavy" if heavy else "")
    config = _within(call, config_of(name, x, x.shape[-1], z.shape[-1]))
    tiles = -(-z.shape[-1] // config.tiles["TILE"])
    rows, partial = call.batch * call.heads, out
    if own is not None:
        partial = torch.empty(tiles, *x.shape[:3], dtype=torch.float32, device=x.device)
    align = alignment(x, y, z, like)
    steps = steps_of(align, x, y, z, like)
    constants = _flags(call, x.dtype) | {
        "X": x.shape[-1],
        "X_PADDED": padded(x.shape[-1]),
        "Z": z.shape[-1],
        "TILES": tiles,
        "ALIGN": align,
        "REVERSE": reverse,
        "TRANSPOSED": transposed,
        "GRADIENT": 0 if own is None else 2 if reverse else 1,
    }
    decay, documents = (out if a is None else a for a in (call.log_decay, call.documents))
    if call.parallel:
        segments = -(-call.length // config.tiles["CHUNK"])
        totals = out if call.totals is None else call.totals
        launch(
            parallel_kernel, (tiles * segments * rows,), x, y, z, out, like, decay, totals, documents, state, partial,
            call.length, call.heads, segments, call.scale, *steps, config=config, **constants,
        )  # fmt: skip
    else:
        launch(
            mix_kernel, (tiles * call.segments * rows,), x, y, z, out, like, decay, documents, state,
            out if final is None else final, partial, call.length, call.heads, call.segments, call.segment, call.scale,
            *steps, config=config, FINAL=final is not None, **constants,
        )  # fmt: skip
    return out, None if own is None else partial.sum(0)


def starts(
    call: HostCall, y: Tensor, z: Tensor, initial: Tensor, into: Tensor | None = None, *, reverse: bool = False
) -> Tensor:
    """Computes the state before each segment (behind it if ``reverse``) ``(segments, B, H, Y, Z)``.

    Several segments are written to ``into``. The state beyond all segments is left to :func:`mix`, which computes it
    anyway.
    """
    if call.segments == 1:
        return initial[None]
    states = initial.new_empty(call.segments, *initial.shape) if into is None else into[: call.segments]
    added, beyond = (states[1:], states[0]) if reverse else (states[:-1], states[-1])
    factors = _add_up(call, y, z, added, reverse=reverse)
    if call.scan:
        return states.copy_(_scan(added, factors, initial, reverse))
    combine(y, added, factors, initial, beyond, reverse)
    return states


def final_state(call: HostCall, y: Tensor, z: Tensor, initial: Tensor, *, reverse: bool = False) -> Tensor:
    """Computes the state beyond a single segment ``(B, H, Y, Z)`` where no :func:`mix` computes it."""
    added, final = torch.empty_like(initial)[None], torch.empty_like(initial)
    combine(y, added, _add_up(call, y, z, added, reverse=reverse), initial, final, reverse)
    return final


def _add_up(call: HostCall, y: Tensor, z: Tensor, states: Tensor, *, reverse: bool) -> Tensor:
    """Fills ``states`` with what segments add, all but the last (if ``reverse`` the first); returns their factors."""
    rows, width, value = call.batch * call.heads, y.shape[-1], z.shape[-1]
    segments, skip = states.shape[0], call.segments - states.shape[0] if reverse else 0
    factors = states.new_empty(segments, call.batch, call.heads)
    config = _within(call, config_of("states", y, width, value))
    tiles, tall = -(-value // config.tiles["TILE"]), -(-width // config.tiles["TILE_Y"])
    align = alignment(y, z)
    steps = steps_of(align, y, z)
    decay, documents = (states if a is None else a for a in (call.log_decay, call.documents))
    launch(
        states_kernel, (tall * tiles * segments * rows,), y, z, decay, documents, states, factors, call.length,
        call.heads, segments, call.segment, skip, call.scale, *steps, config=config, Y=width, Z=value, TILES_Y=tall,
        TILES=tiles, ALIGN=align, REVERSE=reverse, **_flags(call, y.dtype),
    )  # fmt: skip
    return factors


def combine(y: Tensor, added: Tensor, factors: Tensor, initial: Tensor, final: Tensor, reverse: bool) -> None:
    """Replaces what segments add by the states they start from; ``final`` becomes the state beyond them.

    Args:
        y: an array whose dtype and width choose the tiles.
        added: what segments add ``(segments, B, H, D, E)``.
        factors: what is kept over a segment, ``(segments, B, H)`` or by channel ``(segments, B, H, D)``.
        initial: the state before the first segment, behind the last if ``reverse``.
        final: where the state beyond them goes.
        reverse: from the last segment to the first.
    """
    segments, batch, heads, width, value = added.shape
    config = config_of("combine", y, width, value)
    tiles = -(-width * value // config.tiles["TILE"])
    launch(
        combine_kernel, (tiles * batch * heads,), added, factors, initial, final, batch * heads, segments,
        config=config, SIZE=width * value, PER=width * value if factors.dim() == 3 else value, TILES=tiles,
        REVERSE=reverse,
    )  # fmt: skip


def _scan(added: Tensor, factors: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """The same in log depth: a prefix scan over the segments instead of a walk."""
    if reverse:
        added, factors = added.flip(0), factors.flip(0)
    states = torch.cat([initial[None], prefix_scan(initial, factors[..., None, None], added)])
    return states.flip(0) if reverse else states


def triton_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    documents: Tensor | None,
    scale: float,
    algorithm: str,
    segment: int,
    slots: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes output in ``dtype``, final state, and the states before segments in ``slots``, zeros where unused."""
    call = _call(q, log_decay, documents, scale, algorithm, segment)
    q, k, v, state = dense_rows(q), dense_rows(k), dense_rows(v), state.contiguous()
    if call.parallel:
        output, _ = mix(call, q, k, v, state, dtype)
        return output, final_state(call, k, v, state), state.new_zeros(slots, *state.shape)
    final, kept = torch.empty_like(state), state.new_empty(slots, *state.shape)
    kept[call.segments if call.segments > 1 else 0 :].zero_()
    output, _ = mix(call, q, k, v, starts(call, k, v, state, kept), dtype, final=final)
    return output, final, kept


def triton_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor,
    documents: Tensor | None,
    before: Tensor,
    grad_output: Tensor,
    grad_final: Tensor,
    scale: float,
    algorithm: str,
    segment: int,
    of_decays: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Computes gradients of q, k, v and the state, and ``of_decays`` also of each log decay ``(B, T, H)`` in fp64."""
    if of_decays and algorithm != "parallel":  # what is known at the ends of segments bounds its rounding error
        segment = min(segment, EXACT)
    call = _call(q, log_decay, documents, scale, algorithm, segment)
    size, grad_output, behind = fitting(q.dtype, grad_output, grad_final)
    q, k, v, do = dense_rows(q), dense_rows(k), dense_rows(v), dense_rows(grad_output.to(q.dtype))
    behind, state = behind.contiguous(), state.contiguous()
    dtype = q.dtype if size is None else state.dtype
    if call.parallel:
        before, grad_state, final = state, final_state(call, q, do, behind, reverse=True), None
    else:
        if call.segments == 1 or of_decays:
            before = starts(call, k, v, state)
        behind = starts(call, q, do, behind, reverse=True)
        grad_state = final = torch.empty_like(state)
    own_q, own_k = (q, k) if of_decays else (None, None)
    dq, of_queries = mix(call, do, v, k, before, dtype, transposed=True, own=own_q)
    dk, of_keys = mix(call, v, do, q, behind, dtype, reverse=True, transposed=True, own=own_k)
    dv, _ = mix(call, k, q, do, behind, dtype, reverse=True, final=final)
    of_decay = None
    if of_queries is not None and of_keys is not None:
        added = of_queries.double() + of_keys
        of_decay = decay_gradient(call.segment, added, before, behind, state, grad_state)
    if size is not None:
        dq, dk, dv = ((x * size).to(q.dtype) for x in (dq, dk, dv))
        grad_state, of_decay = grad_state * size, None if of_decay is None else of_decay * size
    return dq, dk, dv, grad_state, of_decay


def triton_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, scale: float, dtype: torch.dtype
) -> Tensor:
    """Runs one token in Triton: q, k (B, H, D), v (B, H, E); state (B, H, D, E) fp32 contiguous is updated in place."""
    batch, heads, width = q.shape
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(v, dtype=dtype)
    decay = out if log_decay is None else log_decay.float().contiguous()
    config = config_of("step", q, width, v.shape[-1])
    tiles = -(-v.shape[-1] // config.tiles["TILE"])
    launch(
        step_kernel, (batch * heads * tiles,), q, k, v, out, decay, state, heads, scale, config=config, D=width,
        D_PADDED=padded(width), E=v.shape[-1], TILES=tiles, KIND=0 if log_decay is None else log_decay.dim(),
    )  # fmt: skip
    return out
