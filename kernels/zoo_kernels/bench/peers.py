"""What the kernels are measured beside: PyTorch's fused attention, FlexAttention, and the recurrences of libraries.

Each takes the arrays of a case by name: q ``(B, T, H, D)``, or ``(B, H, D)`` of a step, and k and v ``(B, T, G, D)``.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.case import Form, Forms
from zoo_kernels.layout import BlockLayout


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


def sdpa_peers(bench: Bench) -> Forms:
    """PyTorch's fused kernels that exist on the device."""
    if bench.device.type == "cpu":
        return {"sdpa": sdpa()}
    return {"sdpa flash": sdpa("FLASH_ATTENTION"), "sdpa cudnn": sdpa("CUDNN_ATTENTION")}


def flex_peer(bench: Bench, mask: Callable[[], Any]) -> Forms:
    """FlexAttention, if its BlockMask can be made here, compiled for fixed shapes; a dry run does not compile it."""
    import torch._functorch.config
    from torch.nn.attention.flex_attention import flex_attention

    with bench.guard("flex", "flex"):
        form, made = cast(Callable[..., Any], flex_attention), mask()
        if not bench.dry:
            torch._dynamo.reset()  # every row compiles anew, and their number is limited
            torch._functorch.config.donated_buffer = False  # a backward pass is timed many times
            form = torch.compile(flex_attention, dynamic=False)
        return {"flex": lambda q, k, v, **_: _heads_first(form, q, k, v, block_mask=made)}
    return {}


def causal_mask(length: int, device: torch.device, window: int | None = None, block: int = 128) -> Any:
    """FlexAttention's mask of causal attention, with or without a window (keys, the query's own included).

    Without one it is made of blocks: PyTorch's own function needs an array of all pairs of tokens, which no GPU holds
    at 512k.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    if window is None:
        blocks = -(-length // block)
        visible = torch.ones(1, 1, blocks, blocks, dtype=torch.bool, device=device).tril()
        return BlockLayout.from_blocks(visible, block).to_block_mask(length)

    def visible_keys(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < window)

    return create_block_mask(visible_keys, None, None, length, length, device=device, BLOCK_SIZE=block)


def from_library(bench: Bench, library: str, path: str) -> Callable[..., Any] | None:
    """A function of another library by its path; None, which is noted, where it cannot be imported."""
    module, _, name = path.rpartition(".")
    with bench.guard(path, library):  # some look at the GPU as they are imported, and can fail in many ways
        return getattr(importlib.import_module(module), name)
    return None


def fla_peer(bench: Bench, rule: str, step: bool = False) -> Forms:
    """A recurrence of flash-linear-attention with scale 1, by its name there, where that is installed.

    A step is its recurrent form, called with one token; the new state is written beside the old.
    """
    if bench.dry or bench.options.suite == "cpu":
        return {}
    function = from_library(bench, FLA, f"fla.ops.{rule}.{'fused_recurrent' if step else 'chunk'}_{rule}")
    decays = "g_gamma" if rule == "simple_gla" else "gk" if step and rule == "gla" else "g"

    def run(log_decay: Tensor, state: Tensor | None = None, **x: Tensor) -> Any:
        assert function is not None
        x[decays] = log_decay
        if step:  # a single token; a fixed decay has none
            x = {name: array if array.dim() == 1 else array[:, None] for name, array in x.items()}
        how = {} if state is None else {"initial_state": state, "output_final_state": True}
        return function(**x, scale=1.0, **how)[0]

    return {FLA: run} if function else {}


def transformers_peer(bench: Bench, who: str, path: str, decays: str) -> Forms:
    """A delta rule of transformers in chunks, where that is installed, which takes the log decays named ``decays``."""
    function = from_library(bench, who, f"transformers.models.{path}")

    def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, **x: Tensor) -> Any:
        assert function is not None
        return function(q, k, v, g=x[decays], beta=beta)[0]

    return {who: run} if function else {}
