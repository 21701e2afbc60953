"""What the kernels are measured beside: PyTorch's fused attention, FlexAttention, flash-linear-attention."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_bench.bench import Bench
from kernel_bench.inputs import Attention

FLA = "flash-linear-attention"


def sdpa(backend: str | None = None) -> Attention:
    """Causal ``scaled_dot_product_attention``; ``backend`` is a name of SDPBackend, None leaves the choice."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    chosen = [getattr(SDPBackend, backend)] if backend else []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        with sdpa_kernel(chosen) if chosen else contextlib.nullcontext():
            grouped = q.shape[1] != k.shape[1]
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)

    return attention


def sdpa_peers(bench: Bench) -> dict[str, Attention]:
    """PyTorch's fused kernels that exist on the device."""
    if bench.device.type == "cpu":
        return {"sdpa": sdpa()}
    return {"sdpa flash": sdpa("FLASH_ATTENTION"), "sdpa cudnn": sdpa("CUDNN_ATTENTION")}


def flex(mask: Any) -> Attention:
    """FlexAttention, compiled for fixed shapes, with a BlockMask."""
    import torch._functorch.config
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()  # every row compiles anew, and their number is limited
    torch._functorch.config.donated_buffer = False  # a backward pass is timed many times
    compiled = torch.compile(flex_attention, dynamic=False)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return compiled(q, k, v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)

    return attention


def causal_mask(length: int, device: torch.device, window: int | None = None, block: int = 128) -> Any:
    """FlexAttention's mask of causal attention, with or without a window (keys, the query's own included)."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return i >= j if window is None else (i >= j) & (i - j < window)

    return create_block_mask(visible, None, None, length, length, device=str(device), BLOCK_SIZE=block)


def add_flex(bench: Bench, name: str, peers: dict[str, Attention], mask: Callable[[], Any]) -> None:
    """FlexAttention among the peers, if it can be compiled here; a dry run leaves it out."""
    if bench.dry:
        bench.note("FlexAttention is left out of dry runs")
        return
    with bench.guard(f"{name}, flex"):
        peers["flex"] = flex(mask())


def fla_linear(bench: Bench, log_decay: Tensor) -> dict[str, Attention]:
    """The same maths in flash-linear-attention, where it is installed: a fixed decay per head, scale 1."""
    if bench.dry:
        return {}
    try:
        simple_gla = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
    except Exception as error:  # it looks at the GPU as it is imported, and can fail in many ways
        bench.note(f"{FLA} is left out: {type(error).__name__}: {error}"[:200])
        return {}
    return {FLA: lambda q, k, v: simple_gla(q, k, v, g_gamma=log_decay, scale=1.0)[0]}
