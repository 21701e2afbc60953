"""Cases in which softmax attention is compared with its formula."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import zoo_kernels
from kernel_bench.bench import Bench, Shape
from kernel_bench.judge import Found, batch_of, judge
from kernel_bench.linear_cases import LENGTHS, documents_of
from kernel_bench.patterns import bigbird_blocks, layout_of, longformer_blocks, tokens_of
from kernel_bench.plain import plain_softmax, visible_pairs

PAIRS = ((1, 239), (64, 1000), (113, 203), (108, 256), (127, 513))


@dataclass(frozen=True)
class SoftmaxCase:
    """One comparison; ``layout`` is a pattern of blocks, ``documents`` the lengths of packed documents."""

    name: str
    queries: int = 129
    keys: int = 129
    width: int = 64
    value: int = 0
    heads: int = 4
    groups: int = 4
    window: int | None = None
    sink_tokens: int = 0
    sink_logits: bool = False
    documents: tuple[int, ...] = ()
    layout: str = ""
    block: int = 64
    bias: bool = False
    strided: bool = False

    def __str__(self) -> str:
        size = f"T{self.queries}" if self.queries == self.keys else f"Tq{self.queries} Tk{self.keys}"
        return f"softmax {self.name} {size} D{self.width}"


def _at(case: SoftmaxCase, length: int) -> SoftmaxCase:
    return replace(case, queries=length, keys=length)


def softmax_cases(dry: bool) -> Iterator[SoftmaxCase]:
    """All cases, the plainest first; a dry run has one of each kind."""
    base = SoftmaxCase("causal")
    if dry:
        base = _at(SoftmaxCase("causal", width=16, heads=2, groups=2, block=16), 35)
    length, packed = base.keys, (1, 7, 64, 9, 2000)
    yield from (_at(base, n) for n in ((length,) if dry else LENGTHS))
    yield from (replace(base, name="tail", queries=q, keys=k) for q, k in (((5, 35),) if dry else PAIRS))
    yield from (replace(base, name=f"gqa{g}", groups=g) for g in ((1,) if dry else (1, 2)))
    yield from (replace(base, name=f"window{w}", window=w) for w in ((0, 9) if dry else (0, 1, 17, 64, 100)))
    yield replace(base, name="window,sinks", window=9, sink_tokens=4)
    yield replace(base, name="sink_logits", sink_logits=True)
    yield replace(base, name="documents", documents=packed)
    yield replace(base, name="documents,window,sinks", documents=packed, window=9, sink_tokens=2, sink_logits=True)
    yield replace(base, name="strided", strided=True)
    yield replace(base, name="D,E", width=base.width - 4, value=base.width // 2 + 8)
    listed = _at(base, 60) if dry else _at(base, 300)  # blocks enough for some to be left out
    for layout in ("longformer", "bigbird"):
        yield replace(listed, name=layout, layout=layout)
    yield replace(listed, name="bigbird,gqa", layout="bigbird", groups=base.heads // 2)
    yield replace(listed, name="bigbird,bias", layout="bigbird", bias=True)
    if not dry:
        for width in (128, 256):
            wide = replace(base, width=width)
            yield from (wide, _at(wide, 1000), _at(replace(wide, name="gqa", groups=1, window=100), 513))
        yield _at(replace(base, name="window,documents", documents=packed, window=100), 1000)
        for block in (64, 128):
            for layout in ("longformer", "bigbird"):
                yield _at(replace(base, name=f"{layout}{block}", layout=layout, block=block, width=128), 1000)


def check_softmax(bench: Bench, dtype: torch.dtype, case: SoftmaxCase) -> None:
    """Compare outputs, the log-sum-exp and all gradients, those through the log-sum-exp among them."""
    batch, value = batch_of(bench, case.queries), case.value or case.width
    torch.manual_seed(0)

    def draw(length: int, heads: int, width: int) -> Tensor:
        if case.strided:
            return torch.randn(batch, heads, length, width, device=bench.device).to(dtype).transpose(1, 2)
        return torch.randn(batch, length, heads, width, device=bench.device).to(dtype)

    arrays = {
        "q": draw(case.queries, case.heads, case.width),
        "k": draw(case.keys, case.groups, case.width),
        "v": draw(case.keys, case.groups, value),
    }
    if case.sink_logits:
        arrays["sink_logits"] = torch.randn(case.heads, device=bench.device)
    if case.bias:
        blocks = -(-case.keys // case.block)
        arrays["block_bias"] = torch.randn(1, case.heads, blocks, blocks, device=bench.device)
    upstream = draw(case.queries, case.heads, value), torch.randn(batch, case.queries, case.heads, device=bench.device)
    run = partial(_passes, bench, case, arrays, upstream)
    shape = Shape(batch, case.keys, case.heads, case.width, case.groups)
    judge(bench, str(case), shape, dtype, run("ours", dtype), run("plain", dtype), run("plain", torch.float64))


def _passes(
    bench: Bench,
    case: SoftmaxCase,
    arrays: dict[str, Tensor],
    upstream: tuple[Tensor, Tensor],
    form: str,
    dtype: torch.dtype,
) -> Found:
    wide = torch.promote_types(dtype, torch.float32)
    x = {n: a.detach().to(dtype if n in "qkv" else wide).requires_grad_() for n, a in arrays.items()}
    o, lse = _plain(bench, case, x) if form == "plain" else _ours(bench, case, x)
    total = (o * upstream[0].to(o.dtype)).sum()
    total = total + (lse.masked_fill(lse == -torch.inf, 0.0) * upstream[1].to(lse.dtype)).sum()
    grads = torch.autograd.grad(total, list(x.values()), allow_unused=True)  # no key at all: no path to k
    found = {f"grad {n}": torch.zeros_like(x[n]) if g is None else g for n, g in zip(x, grads)}
    return {"output": o, "lse": lse, **found}


def _visible(bench: Bench, case: SoftmaxCase) -> Tensor:
    """The blocks of a layout, ``(1, heads or 1, blocks, blocks)``."""
    blocks = -(-case.keys // case.block)
    if case.layout == "longformer":
        return longformer_blocks(blocks, 2, 1).to(bench.device)
    return bigbird_blocks(blocks, case.heads, 1, 1, 1).to(bench.device)


def _plain(bench: Bench, case: SoftmaxCase, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    documents = documents_of(case.documents, x["k"])
    allowed = visible_pairs(case.queries, case.keys, bench.device, case.window, case.sink_tokens, documents)
    if case.layout:
        allowed = allowed & tokens_of(_visible(bench, case), case.block, case.keys)
    bias = x.get("block_bias")
    if bias is not None:
        bias = bias.repeat_interleave(case.block, -1).repeat_interleave(case.block, -2)
        bias = bias[..., : case.queries, : case.keys]
    return plain_softmax(x["q"], x["k"], x["v"], allowed, None, x.get("sink_logits"), bias)


def _ours(bench: Bench, case: SoftmaxCase, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    options = {
        "window": case.window,
        "sink_tokens": case.sink_tokens,
        "sink_logits": x.get("sink_logits"),
        "documents": documents_of(case.documents, x["k"]),
    }
    if case.layout:
        options["layout"] = layout_of(_visible(bench, case), case.block, bench.device)
    if case.bias:
        options["block_bias"] = x["block_bias"]
    attention = bench.ours(zoo_kernels.softmax_attention)
    o, lse = attention(x["q"], x["k"], x["v"], return_lse=True, **options)
    return o, lse
