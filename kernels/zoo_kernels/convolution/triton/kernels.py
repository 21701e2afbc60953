# mypy: ignore-errors
"""The short convolution in Triton: one kernel forward and one for all gradients.

Tokens -(TAPS - 1) .. -1 are the inputs before token 0. Forward, y_t = bias + sum_j w_j x_{t - j}, each token reads its
TAPS inputs, which the cache holds. Backward, each input x_u meets the gradients that it went into,

    dx_u = sum_j w_j dy_{u + j}        dw_j = sum_u x_u dy_{u + j}        dbias = sum_t dy_t

so that one pass over the inputs gives everything; weights are summed per program, and on the host over programs.
"""

import triton
import triton.language as tl

FREE = ("T", "blocks", "xb", "xt", "gb", "gt")


@triton.jit
def load_inputs(x, initial, t, columns, b, T, end, xb, xt, C: tl.constexpr, TAPS: tl.constexpr, INITIAL: tl.constexpr):
    """Loads inputs ``t`` of a row in fp32; those from ``end`` on are 0, those before token 0 are in ``initial``."""
    inside = ((t >= 0) & (t < end))[:, None] & (columns < C)[None, :]
    found = tl.load(x + b * xb + t[:, None] * xt + columns[None, :], mask=inside, other=0.0).to(tl.float32)
    if INITIAL:
        place = (b * (TAPS - 1) + t + (TAPS - 1))[:, None] * C + columns[None, :]
        before = ((t < 0) & (t >= 1 - TAPS))[:, None] & (columns < C)[None, :]
        found += tl.load(initial + place, mask=before, other=0.0).to(tl.float32)
    return found


@triton.jit
def document_of(documents, b, t, T):
    """Loads the documents of tokens ``t``; those before token 0 are of its document."""
    t = tl.minimum(tl.maximum(t, 0), T - 1)
    return tl.load(documents + b * T + t)


@triton.jit(do_not_specialize=FREE)
def convolution_kernel(
    x,
    weight,
    bias,
    initial,
    documents,
    lengths,
    out,
    T: tl.int64,
    blocks: tl.int64,
    xb: tl.int64,
    xt: tl.int64,
    C: tl.constexpr,
    TILES: tl.constexpr,
    TAPS: tl.constexpr,
    ALIGN: tl.constexpr,
    BIAS: tl.constexpr,
    INITIAL: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    LENGTHS: tl.constexpr,
    TIME: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes out ``(B, T, C)`` for TIME tokens and TILE channels; strides of x are in units of ALIGN numbers.

    weight is ``(TAPS, C)`` fp32, that of the token itself last; bias ``(C,)`` fp32; initial ``(B, TAPS - 1, C)``.
    """
    program = tl.program_id(0).to(tl.int64)
    columns = program % TILES * TILE + tl.arange(0, TILE)
    t = program // TILES % blocks * TIME + tl.arange(0, TIME)
    b = program // (TILES * blocks)
    end = T
    if LENGTHS:
        end = tl.load(lengths + b)
    y = tl.zeros((TIME, TILE), tl.float32)
    if BIAS:
        y += tl.load(bias + columns, mask=columns < C, other=0.0)[None, :]
    for shift in tl.static_range(TAPS):
        tap = tl.load(weight + (TAPS - 1 - shift) * C + columns, mask=columns < C, other=0.0)
        found = load_inputs(x, initial, t - shift, columns, b, T, end, xb * ALIGN, xt * ALIGN, C, TAPS, INITIAL)
        if DOCUMENTS:
            same = document_of(documents, b, t, T) == document_of(documents, b, t - shift, T)
            found = tl.where(same[:, None], found, 0.0)
        y += found * tap[None, :]
    tl.store(out + (b * T + t)[:, None] * C + columns[None, :], y, mask=(t < T)[:, None] & (columns < C)[None, :])


@triton.jit(do_not_specialize=FREE)
def convolution_gradients_kernel(
    x,
    weight,
    grad,
    initial,
    documents,
    lengths,
    to_x,
    to_initial,
    to_weight,
    to_bias,
    T: tl.int64,
    blocks: tl.int64,
    xb: tl.int64,
    xt: tl.int64,
    gb: tl.int64,
    gt: tl.int64,
    C: tl.constexpr,
    TILES: tl.constexpr,
    TAPS: tl.constexpr,
    TAPS_PADDED: tl.constexpr,
    ALIGN: tl.constexpr,
    INITIAL: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    LENGTHS: tl.constexpr,
    TIME: tl.constexpr,
    TILE: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Computes to_x ``(B, T, C)``, to_initial, and to_weight ``(B blocks, TAPS, C)``, to_bias ``(B blocks, C)`` to sum.

    A program goes through SPAN times TIME inputs, of all ``T + TAPS - 1``, and has a part of its own of the sums.
    """
    program = tl.program_id(0).to(tl.int64)
    columns = program % TILES * TILE + tl.arange(0, TILE)
    part = program // TILES
    b = part // blocks
    end = T
    if LENGTHS:
        end = tl.load(lengths + b)
    k = tl.arange(0, TAPS_PADDED)
    of_weight = tl.zeros((TAPS_PADDED, TILE), tl.float32)
    of_bias = tl.zeros((TILE,), tl.float32)
    begin = part % blocks * (SPAN * TIME) - (TAPS - 1)
    for m in range(tl.minimum(SPAN, tl.cdiv(T - begin, TIME))):
        t = begin + m * TIME + tl.arange(0, TIME)
        found = load_inputs(x, initial, t, columns, b, T, end, xb * ALIGN, xt * ALIGN, C, TAPS, INITIAL)
        of_x = tl.zeros((TIME, TILE), tl.float32)
        for shift in tl.static_range(TAPS):
            tap = tl.load(weight + (TAPS - 1 - shift) * C + columns, mask=columns < C, other=0.0)
            s = t + shift
            inside = ((s >= 0) & (s < end))[:, None] & (columns < C)[None, :]
            later = tl.load(
                grad + b * (gb * ALIGN) + s[:, None] * (gt * ALIGN) + columns[None, :], mask=inside, other=0.0
            )
            later = later.to(tl.float32)
            if shift == 0:
                of_bias += tl.sum(later, 0)
            if DOCUMENTS:
                same = document_of(documents, b, t, T) == document_of(documents, b, s, T)
                later = tl.where(same[:, None], later, 0.0)
            of_x += later * tap[None, :]
            of_weight += tl.where((k == TAPS - 1 - shift)[:, None], tl.sum(later * found, 0)[None, :], 0.0)
        written = ((t >= 0) & (t < T))[:, None] & (columns < C)[None, :]
        tl.store(to_x + (b * T + t)[:, None] * C + columns[None, :], of_x, mask=written)
        if INITIAL:
            place = (b * (TAPS - 1) + t + (TAPS - 1))[:, None] * C + columns[None, :]
            tl.store(to_initial + place, of_x, mask=(t < 0)[:, None] & (columns < C)[None, :])
    held = (k < TAPS)[:, None] & (columns < C)[None, :]
    tl.store(to_weight + (part * TAPS + k)[:, None] * C + columns[None, :], of_weight, mask=held)
    tl.store(to_bias + part * C + columns, of_bias, mask=columns < C)
