# mypy: ignore-errors
"""One token of linear attention in Triton, with the state updated in place, for use inside a CUDA graph."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["H"])
def step_kernel(
    q,
    k,
    v,
    out,
    log_decay,
    state,
    H: tl.int64,
    scale: tl.float32,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    E: tl.constexpr,
    TILES: tl.constexpr,
    KIND: tl.constexpr,
    TILE: tl.constexpr,
):
    """Computes one token: q, k (B*H, D), v, out (B*H, E), state (B*H, D, E) fp32.

    log_decay is (H,) if KIND is 1, (B*H,) if it is 2 and (B*H, D) if it is 3.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // TILES
    columns = program % TILES * TILE + tl.arange(0, TILE)
    wide = tl.arange(0, D_PADDED)
    q_row = tl.load(q + row * D + wide, mask=wide < D, other=0.0).to(tl.float32)
    k_row = tl.load(k + row * D + wide, mask=wide < D, other=0.0).to(tl.float32)
    v_row = tl.load(v + row * E + columns, mask=columns < E, other=0.0).to(tl.float32)
    element = state + row * (D * E) + wide[:, None] * E + columns[None, :]
    held = (wide < D)[:, None] & (columns < E)[None, :]
    value = tl.load(element, mask=held, other=0.0)
    if KIND == 1:
        value *= tl.exp(tl.load(log_decay + row % H))
    elif KIND == 2:
        value *= tl.exp(tl.load(log_decay + row))
    elif KIND == 3:
        kept = tl.load(log_decay + row * D + wide, mask=wide < D, other=0.0)
        value *= tl.exp(tl.minimum(kept, 0.0))[:, None]
    value += k_row[:, None] * v_row[None, :]
    tl.store(element, value, mask=held)
    tl.store(out + row * E + columns, tl.sum(q_row[:, None] * value, 0) * scale, mask=columns < E)
