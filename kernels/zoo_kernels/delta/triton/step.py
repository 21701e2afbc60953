# mypy: ignore-errors
"""One token of delta attention in Triton, with the state updated in place, for use inside a CUDA graph."""

import triton
import triton.language as tl

LOWEST = tl.constexpr(-1000.0)  # a log decay that is 0 as a factor


@triton.jit
def row_of(x, b, h, H, XH, wide, D: tl.constexpr):
    """Loads the row of an array (B, XH, D) that value head ``h`` of H reads."""
    return tl.load(x + (b * XH + h // (H // XH)) * D + wide, mask=wide < D, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["H", "QH", "PH", "YH", "scale"])
def delta_step_kernel(
    q,
    k,
    v,
    read,
    erase,
    beta,
    log_decay,
    state,
    out,
    H: tl.int64,
    QH: tl.int64,
    PH: tl.int64,
    YH: tl.int64,
    scale: tl.float32,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    E: tl.constexpr,
    TILES: tl.constexpr,
    KIND: tl.constexpr,
    RULE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes one token: q, k (B, QH, D), read (B, PH, D), erase (B, YH, D), v, out (B, H, E), state (B, H, D, E).

    KIND of the decay: 0 none, 1 per head, 2 per row and head, 3 per channel. RULE: 0 none, 1 beta, 2 read and erase.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // TILES
    b = row // H
    h = row % H
    columns = program % TILES * TILE + tl.arange(0, TILE)
    wide = tl.arange(0, D_PADDED)
    q_row = row_of(q, b, h, H, QH, wide, D)
    k_row = row_of(k, b, h, H, QH, wide, D)
    v_row = tl.load(v + row * E + columns, mask=columns < E, other=0.0).to(tl.float32)
    element = state + row * (D * E) + wide[:, None] * E + columns[None, :]
    held = (wide < D)[:, None] & (columns < E)[None, :]
    value = tl.load(element, mask=held, other=0.0)
    if KIND == 1:
        value *= tl.exp(tl.minimum(tl.maximum(tl.load(log_decay + h).to(tl.float32), LOWEST), 0.0))
    elif KIND == 2:
        value *= tl.exp(tl.minimum(tl.maximum(tl.load(log_decay + row).to(tl.float32), LOWEST), 0.0))
    elif KIND == 3:
        decay = tl.load(log_decay + row * D + wide, mask=wide < D, other=0.0).to(tl.float32)
        value *= tl.exp(tl.minimum(tl.maximum(decay, LOWEST), 0.0))[:, None]
    if RULE == 1:
        v_row = (v_row - tl.sum(k_row[:, None] * value, 0)) * tl.load(beta + row).to(tl.float32)
    elif RULE == 2:
        found = tl.sum(row_of(read, b, h, H, PH, wide, D)[:, None] * value, 0)
        value -= row_of(erase, b, h, H, YH, wide, D)[:, None] * found[None, :]
    value += k_row[:, None] * v_row[None, :]
    tl.store(element, value, mask=held)
    tl.store(out + row * E + columns, tl.sum(q_row[:, None] * value, 0) * scale, mask=columns < E)
