"""What the kernels are measured beside: PyTorch's fused attention, FlexAttention, flash-linear-attention.

Each takes the arrays of a case by name: q ``(B, T, H, D)``, or ``(B, H, D)`` of a step, and k and v ``(B, T, G, D)``.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.case import Form


def sdpa(backend: str | None = None) -> Form:
    """``scaled_dot_product_attention``; ``backend`` is a name of SDPBackend, None leaves the choice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = [getattr(SDPBackend, backend)] if backend else []

    def attention(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        with sdpa_kernel(chosen) if chosen else contextlib.nullcontext():
            return _heads_first(F.scaled_dot_product_attention, q, k, v, is_causal=q.dim() == 4)

    return attention


def _heads_first(function: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """A function of PyTorch's, whose arrays have heads before tokens."""
    q, k, v = ((x if x.dim() == 4 else x[:, None]).transpose(1, 2) for x in (q, k, v))
    return function(q, k, v, enable_gqa=q.shape[1] != k.shape[1], **how).transpose(1, 2)


def sdpa_peers(bench: Bench) -> dict[str, Form]:
    """PyTorch's fused kernels that exist on the device."""
    if bench.device.type == "cpu":
        return {"sdpa": sdpa()}
    return {"sdpa flash": sdpa("FLASH_ATTENTION"), "sdpa cudnn": sdpa("CUDNN_ATTENTION")}


def flex(mask: Any, compiled: bool = True) -> Form:
    """FlexAttention, compiled for fixed shapes, with a BlockMask; None shows every key to every query."""
    import torch._functorch.config
    from torch.nn.attention.flex_attention import flex_attention

    form: Callable[..., Any] = flex_attention
    if compiled:
        torch._dynamo.reset()  # every row compiles anew, and their number is limited
        torch._functorch.config.donated_buffer = False  # a backward pass is timed many times
        form = torch.compile(flex_attention, dynamic=False)

    return lambda q, k, v, **_: _heads_first(form, q, k, v, block_mask=mask)


def flex_peer(bench: Bench, name: str, mask: Callable[[], Any]) -> dict[str, Form]:
    """FlexAttention, if its mask can be made here; a dry run does not compile it."""
    with bench.guard(f"{name}, flex", "flex"):
        return {"flex": flex(mask(), compiled=not bench.dry)}
    return {}


def causal_mask(length: int, device: torch.device, window: int | None = None, block: int = 128) -> Any:
    """FlexAttention's mask of causal attention, with or without a window (keys, the query's own included).

    Made block by block: PyTorch's own function needs an array of all pairs of tokens, which no GPU holds at 512k.
    """
    from torch.nn.attention.flex_attention import BlockMask

    reach = length if window is None else window

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < reach)

    index = torch.arange(-(-length // block), device=device)
    apart = (index[:, None] - index) * block  # from the first key to the first query
    some = (apart >= 0) & (apart - block + 1 < reach)
    whole = (apart >= block) & (apart + block - 1 < reach)
    how: dict[str, Any] = {"BLOCK_SIZE": block, "mask_mod": visible, "seq_lengths": (length, length)}
    return BlockMask.from_kv_blocks(*_listed(some & ~whole), *_listed(whole), **how)


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Number of the blocks in each row, and these, in front of the others."""
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1).to(torch.int32)[None, None], order.to(torch.int32)[None, None]


def fla_peer(bench: Bench, step: bool = False) -> dict[str, Form]:
    """Linear attention of flash-linear-attention, where it is installed: a fixed decay per head, scale 1."""
    if bench.dry or not bench.bounded:
        return {}
    try:
        ops = importlib.import_module("fla.ops.simple_gla")
        function = ops.fused_recurrent_simple_gla if step else ops.chunk_simple_gla
    except Exception as error:  # it looks at the GPU as it is imported, and can fail in many ways
        bench.note(f"{FLA} is left out: {type(error).__name__}: {error}"[:200])
        return {}

    def whole(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, **_: Any) -> Any:
        return function(q, k, v, g_gamma=log_decay, scale=1.0)[0]

    def one(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, **_: Any) -> Any:
        one_token = (x[:, None] for x in (q, k, v))
        return function(*one_token, g_gamma=log_decay, scale=1.0, initial_state=state, output_final_state=True)[0]

    return {FLA: one if step else whole}
