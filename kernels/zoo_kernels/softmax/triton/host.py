"""Host side of softmax attention in Triton: buffers, arguments, launches. Nothing here waits for the GPU."""

from __future__ import annotations

from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.launch import Config, choose, launch
from zoo_kernels.softmax.mask import KeyRule
from zoo_kernels.softmax.triton.configs import TABLE
from zoo_kernels.softmax.triton.decode import decode_kernel, merge_kernel
from zoo_kernels.softmax.triton.forward import forward_kernel
from zoo_kernels.softmax.triton.key_gradient import key_gradient_kernel
from zoo_kernels.softmax.triton.query_gradient import query_gradient_kernel

if TYPE_CHECKING:
    from zoo_kernels.layout import BlockLayout, Lists

_VECTOR = 16  # numbers; more alignment than this helps no load
_PROGRAMS = 264  # of the decode kernel, about two for each multiprocessor of a large GPU
_MOST_SPLITS = 256
_FAR = 2**31 // 256  # numbers between rows: places inside a tile, which has 256 rows at most, are 32-bit numbers
_MOST_PACKED = 32  # query heads in one program of the decode kernel; with more, registers spill


def rows_dense(*arrays: Tensor) -> list[Tensor]:
    """Returns the arrays with the numbers of each head contiguous.

    An array is copied if they are not, or if its rows are very far apart.
    """
    fit = [(x.stride(-1) == 1 or x.shape[-1] == 1) and x.stride(1) < _FAR for x in arrays]
    return [x if fits else x.contiguous() for x, fits in zip(arrays, fit)]


def strides(x: Tensor) -> list[int]:
    """Strides of all dimensions but the last; 0 for dimensions of size 1."""
    return [s if n > 1 else 0 for n, s in zip(x.shape[:-1], x.stride()[:-1])]


def common_unit(*arrays: Tensor) -> int:
    """Largest power of two up to 16 that divides the widths and strides of all arrays."""
    return gcd(_VECTOR, *(s for x in arrays for s in (x.shape[-1], *strides(x))))


def padded(width: int) -> int:
    """Width of a tile in registers: the next power of two."""
    return max(16, 1 << (width - 1).bit_length())


def document_bounds(documents: Tensor) -> tuple[Tensor, Tensor]:
    """First position of each token's document, and the position after its last one.

    Ids are ``(B, T)``, the results ``(B, T)`` int32.
    """
    length = documents.shape[1]
    time = torch.arange(length, dtype=torch.int32, device=documents.device).expand(documents.shape)
    first = torch.ones_like(documents, dtype=torch.bool)
    first[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = torch.where(first, time, 0).cummax(1).values
    last = first.roll(-1, 1)  # the token before the first of the next one; first[:, 0] is True
    ends = torch.where(last, time + 1, length).flip(1).cummin(1).values.flip(1)
    return starts.contiguous(), ends.contiguous()


class _Call(NamedTuple):
    """What the launches of one call share."""

    rule: KeyRule
    layout: BlockLayout | None
    bias: Tensor | None
    bounds: tuple[Tensor | None, Tensor | None]
    flags: dict[str, Any]


def _call(q: Tensor, v: Tensor, rule: KeyRule, layout: BlockLayout | None, bias: Tensor | None, unit: int) -> _Call:
    flags = {
        "WIDTH": q.shape[-1],
        "VALUE": v.shape[-1],
        "WIDTH_BLOCK": padded(q.shape[-1]),
        "VALUE_BLOCK": padded(v.shape[-1]),
        "UNIT": unit,
        "WINDOW": rule.window is not None,
        "SINKS": rule.window is not None and rule.sink_tokens > 0,
        "DOCUMENTS": rule.documents is not None,
        "LAYOUT": layout.block if layout is not None else 0,
        "BIAS": bias is not None,
    }
    bounds = (None, None) if rule.documents is None else document_bounds(rule.documents)
    bias = None if bias is None else bias.float().contiguous()
    return _Call(rule, layout, bias, bounds, flags)


def _config(kernel: str, q: Tensor, v: Tensor, layout: BlockLayout | None) -> Config:
    """Tiles of the table, cut to the blocks of a layout."""
    row = f"{kernel}_listed" if layout is not None and f"{kernel}_listed" in TABLE else kernel
    width = max(q.shape[-1], v.shape[-1])
    config = choose(TABLE, row, q.device, q.dtype, width)
    if layout is None or layout.block >= max(config.tiles.values()):
        return config
    tiles = {name: min(size, layout.block) for name, size in config.tiles.items()}
    few = width <= 64 or tiles["QUERIES"] == tiles["KEYS"] <= 32
    return config._replace(tiles=tiles, warps=min(config.warps, 4) if few else config.warps)


def _lists(call: _Call, by_key: bool) -> tuple[Tensor | None, ...]:
    if call.layout is None:
        return None, None, None, None, None
    lists = call.layout.by_key if by_key else call.layout.by_query
    arrays = lists.offsets, lists.full, lists.blocks, lists.masks, call.layout.bits
    return tuple(x.contiguous() for x in arrays)


def _numbers(call: _Call, q: Tensor, k: Tensor, scale: float, lists: Lists | None) -> tuple[float | int, ...]:
    """Arguments from ``scale`` to ``R``."""
    keys, heads = k.shape[1], q.shape[2]
    window = keys if call.rule.window is None else min(call.rule.window, keys)
    rule = scale, call.rule.offset, q.shape[1], keys, window, min(call.rule.sink_tokens, keys)
    rows = columns = list_batch = list_head = bias_batch = bias_head = 0
    if lists is not None:
        batches, of_heads, rows = lists.full.shape
        list_batch, list_head = of_heads if batches > 1 else 0, int(of_heads > 1)
    if call.bias is not None:
        batches, of_heads, of_rows, columns = call.bias.shape
        bias_batch, bias_head = of_heads * of_rows if batches > 1 else 0, of_rows if of_heads > 1 else 0
    return (*rule, rows, columns, list_batch, list_head, bias_batch, bias_head, heads, heads // k.shape[2])


def _tiles(start: int, stop: int, size: int) -> int:
    """Tiles at multiples of ``size`` that cover ``start ... stop``."""
    return -(-stop // size) - start // size


def triton_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rule: KeyRule,
    scale: float,
    layout: BlockLayout | None,
    block_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Runs the forward pass of softmax attention in Triton.

    Args:
        q: queries ``(B, Tq, H, D)``, up to 256 wide.
        k: keys ``(B, Tk, G, D)``.
        v: values ``(B, Tk, G, E)``, up to 256 wide.
        rule: which keys a query may read.
        scale: factor of the scores, above 0.
        layout: visible blocks, instead of a window, sink tokens and documents; a full block lies below Tk.
        block_bias: ``(B | 1, H | 1, blocks, blocks)`` additive logits, with a layout only.

    Returns:
        Output ``(B, Tq, H, E)`` in the dtype of q and natural log-sum-exp ``(B, Tq, H)`` in fp32.
    """
    q, k, v = rows_dense(q, k, v)
    batch, queries, heads, _ = q.shape
    o = torch.empty(batch, queries, heads, v.shape[-1], dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, queries, heads, dtype=torch.float32, device=q.device)
    if not o.numel():
        return o, lse
    unit = common_unit(q, k, v)
    call = _call(q, v, rule, layout, block_bias, unit)
    config = _config("forward", q, v, layout)
    grid = _tiles(rule.offset, k.shape[1], config.tiles["QUERIES"]), heads, batch
    lists = None if layout is None else layout.by_query
    launch(
        forward_kernel, grid, q, k, v, o, lse, call.bounds[0], *_lists(call, False), call.bias,
        *(s // unit for x in (q, k, v) for s in strides(x)), *_numbers(call, q, k, scale, lists),
        config=config, **call.flags,
    )  # fmt: skip
    return o, lse


def triton_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    grad_o: Tensor,
    grad_lse: Tensor,
    rule: KeyRule,
    scale: float,
    layout: BlockLayout | None,
    block_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Runs the backward pass in Triton: gradients of q, k, v and the block bias."""
    q, k, v, grad_o = rows_dense(q, k, v, grad_o)
    o, lse = o.contiguous(), lse.contiguous()
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if not q.numel():
        return grad_q, grad_k.zero_(), grad_v.zero_(), None if block_bias is None else torch.zeros_like(block_bias)
    batch, queries, heads, _ = q.shape
    unit = common_unit(q, k, v, grad_o)
    call = _call(q, v, rule, layout, block_bias, unit)
    steps = [s // unit for x in (q, k, v, grad_o) for s in strides(x)]
    row_lse, row_delta = (torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device) for _ in range(2))

    config = _config("query_gradient", q, v, layout)
    parts = None if call.bias is None else _bias_parts(call, batch, heads, config)
    grid = _tiles(rule.offset, k.shape[1], config.tiles["QUERIES"]), heads, batch
    of_lse = [s if n > 1 else 0 for n, s in zip(grad_lse.shape, grad_lse.stride())]
    launch(
        query_gradient_kernel, grid, q, k, v, o, lse, grad_o, grad_lse, grad_q, row_lse, row_delta, parts,
        call.bounds[0], *_lists(call, False), call.bias, *steps, *of_lse,
        *_numbers(call, q, k, scale, None if layout is None else layout.by_query), config=config, **call.flags,
    )  # fmt: skip

    config = _config("key_gradient", q, v, layout)
    grid = _tiles(0, k.shape[1], config.tiles["KEYS"]), k.shape[2], batch
    launch(
        key_gradient_kernel, grid, q, k, v, grad_o, row_lse, row_delta, grad_k, grad_v,
        *call.bounds, *_lists(call, True), call.bias, *steps,
        *_numbers(call, q, k, scale, None if layout is None else layout.by_key), config=config, **call.flags,
    )  # fmt: skip
    grad_bias = None if parts is None or block_bias is None else _sum_parts(parts, block_bias)
    return grad_q, grad_k, grad_v, grad_bias


def _bias_parts(call: _Call, batch: int, heads: int, config: Config) -> Tensor:
    """Buffer for the sum of each pair of tiles: ``(B, H, blocks, tiles of a block, blocks, tiles of a block)``.

    Blocks of queries are those of the layout, of keys those of the bias; either may have more than the call needs.
    """
    assert call.bias is not None and call.layout is not None
    rows, columns = call.layout.shape[2], call.bias.shape[3]
    tiles = [call.layout.block // config.tiles[name] for name in ("QUERIES", "KEYS")]
    return torch.zeros(batch, heads, rows, tiles[0], columns, tiles[1], dtype=torch.float32, device=call.bias.device)


def _sum_parts(parts: Tensor, bias: Tensor) -> Tensor:
    summed = [i for i in (0, 1) if bias.shape[i] == 1]
    blocks = parts.sum((3, 5))[:, :, : bias.shape[2]]
    blocks = blocks.sum(summed, keepdim=True) if summed else blocks
    return F.pad(blocks, (0, 0, 0, bias.shape[2] - blocks.shape[2])).to(bias.dtype)


def triton_step(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    window: int | None,
    sink_tokens: int,
    ring: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Runs one query per row over its cache in Triton.

    Args:
        q: query ``(B, H, D)``.
        k_cache: keys ``(B, capacity, G, D)``.
        v_cache: values ``(B, capacity, G, E)``.
        lengths: ``(B,)`` tokens that each row has seen, the query's own included.
        window: a key at position p is read if ``p >= length - window`` or ``p < sink_tokens``; None for all keys.
        sink_tokens: number s of first tokens that stay visible.
        ring: position ``p >= s`` is in slot ``s + (p - s) % (capacity - s)``; without a ring in slot p.
        scale: factor of the scores, above 0.

    Returns:
        Output ``(B, H, E)`` in the dtype of q and natural log-sum-exp ``(B, H)`` in fp32.
    """
    q, k, v = rows_dense(q, k_cache, v_cache)
    (batch, heads, width), (capacity, groups), value = q.shape, k.shape[1:3], v.shape[-1]
    o = torch.empty(batch, heads, value, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, dtype=torch.float32, device=q.device)
    if not o.numel():
        return o, lse
    config, merging = (choose(TABLE, name, q.device, q.dtype, max(width, value)) for name in ("decode", "merge"))
    shared = heads // groups
    packed = min(padded(shared), _MOST_PACKED)
    pieces = -(-shared // packed)
    splits = _splits(capacity, batch * groups * pieces, config.tiles["KEYS"])
    parts = torch.empty(batch, heads, splits, value, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(batch, heads, splits, dtype=torch.float32, device=q.device)
    unit, widest = common_unit(q, k, v), 2**31 - 1
    blocks = {"WIDTH_BLOCK": padded(width), "HEADS": packed, "PIECES": pieces, "UNIT": unit, "RING": ring}
    launch(
        decode_kernel, (splits, groups * pieces, batch), q, k, v, lengths.contiguous(), parts, part_lse,
        *(s // unit for x in (q, k, v) for s in strides(x)), scale, capacity,
        widest if window is None else min(window, widest), min(sink_tokens, capacity), shared,
        config=config, WIDTH=width, VALUE=value, VALUE_BLOCK=padded(value), WINDOW=window is not None, **blocks,
    )  # fmt: skip
    launch(
        merge_kernel, (heads, batch), parts, part_lse, o, lse, splits,
        config=merging, VALUE=value, VALUE_BLOCK=padded(value),
    )  # fmt: skip
    return o, lse


def _splits(capacity: int, rows: int, keys: int) -> int:
    """Programs that share the keys of one row and key head: enough to fill the GPU, with two tiles of keys or more."""
    return max(1, min(-(-_PROGRAMS // rows), -(-capacity // (2 * keys)), _MOST_SPLITS))
