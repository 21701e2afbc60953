"""The CPU tables: lightning and sparse attention against PyTorch's exact attention, fp32, one row of eight heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import zoo_kernels
from kernel_bench.bench import Bench, Row, Shape
from kernel_bench.inputs import BOTH, FORWARD, Attention, draw_inputs, slopes, timed
from kernel_bench.patterns import bigbird_blocks, layout_of, longformer_blocks, window_blocks
from kernel_bench.peers import add_flex, causal_mask, sdpa
from kernel_bench.timing import Run

HEADS, WIDTH, BLOCK = 8, 64, 64
LENGTHS = {"full": [512 << i for i in range(8)], "quick": [512, 1024, 2048, 4096]}
RATIOS = {512: ">= 2", 8192: ">= 16"}
PATIENCE = 150.0  # seconds that one call of a peer may take
ONCE = 10.0  # seconds of a call from which it is made once, without a warm-up
DTYPE = torch.float32


def linear(bench: Bench) -> None:
    """Lightning against exact attention over contexts, forward and backward, and its time per token."""
    exact: dict[int, float] = {}
    lengths = LENGTHS[bench.scale]

    def run(length: int) -> None:
        _lightning(bench, Shape(1, length, HEADS, WIDTH), exact)

    bench.each(lengths, run, lambda length: f"lightning T{length}")
    bench.each(["flatness"], lambda _: _flatness(bench, [n for n in lengths if n >= 2048]))
    bench.each([4096 if bench.scale == "quick" else 8192], lambda t: _forward(bench, t), lambda t: f"forward T{t}")


def _flatness(bench: Bench, lengths: list[int]) -> None:
    """All contexts side by side, so that what else the machine does meets them alike."""
    decay = slopes(HEADS, bench.device)
    runs = {}
    for length in lengths:
        sets = draw_inputs(bench, Shape(1, length, HEADS, WIDTH), DTYPE)
        runs[str(length)] = timed(lambda q, k, v: zoo_kernels.linear_attention(q, k, v, decay)[0], sets, BOTH)
    found = [timing.median / int(length) for length, timing in bench.measure("flatness", runs).items()]
    row = Row("lightning, 2k and more side by side", Shape(1, max(lengths), HEADS, WIDTH), DTYPE, "ours", BOTH)
    bench.add(row, "slowest over fastest time per token", max(found) / min(found), "x", "<= 1.3")


def _lightning(bench: Bench, shape: Shape, exact: dict[int, float]) -> None:
    name, length = "lightning", shape.length
    sets = draw_inputs(bench, shape, DTYPE)
    decay = slopes(HEADS, bench.device)
    runs = {"ours": timed(lambda q, k, v: zoo_kernels.linear_attention(q, k, v, decay)[0], sets, BOTH)}
    expected = _guess(exact, length)
    if expected < PATIENCE:
        runs["sdpa"] = timed(sdpa(), sets, BOTH)
    else:
        bench.note(f"sdpa at T={length} is left out: one call would take about {expected / 60:.0f} minutes")
    found = bench.measure(f"{name} {shape}", runs, once=["sdpa"] if expected > ONCE and "sdpa" in runs else [])
    for who, timing in found.items():
        bench.add(Row(name, shape, DTYPE, who, BOTH, timing), "per token", 1e3 * timing.median / length, "us")
    if "sdpa" in found:
        exact[length] = found["sdpa"].median
    if len(found) == 2:
        ratio = found["sdpa"].median / found["ours"].median
        row = Row(name, shape, DTYPE, "ours", BOTH, found["ours"])
        bench.add(row, "over sdpa", ratio, "x", RATIOS.get(length))


def _guess(exact: dict[int, float], length: int) -> float:
    """Seconds that exact attention may take, from the longest context so far; it only decides whether to measure."""
    known = max(exact, default=0)
    return exact[known] / 1e3 * (length / known) ** 2 if known else 5.0 * (length / 8192) ** 2


def _forward(bench: Bench, length: int) -> None:
    """Forward alone, since FlexAttention has no more on the CPU."""
    name, shape = "causal", Shape(1, length, HEADS, WIDTH)
    sets, decay = draw_inputs(bench, shape, DTYPE), slopes(HEADS, bench.device)
    forms: dict[str, Attention] = {
        "ours, lightning": lambda q, k, v: zoo_kernels.linear_attention(q, k, v, decay)[0],
        "ours, softmax": lambda q, k, v: zoo_kernels.softmax_attention(q, k, v),
        "sdpa": sdpa(),
    }
    add_flex(bench, name, forms, lambda: causal_mask(length, bench.device))
    found = bench.measure(f"{name} {shape}", {who: timed(form, sets, FORWARD) for who, form in forms.items()})
    for who, timing in found.items():
        bench.add(Row(name, shape, DTYPE, who, FORWARD, timing), "per token", 1e3 * timing.median / length, "us")


def sparse(bench: Bench) -> None:
    """Three patterns of at most 16 % of the pairs against dense attention: target 0.6 / density."""
    length = 2048 if bench.scale == "quick" else 8192
    blocks = length // BLOCK
    few = bench.scale == "quick"
    patterns: dict[str, Tensor] = {
        "window 256": window_blocks(blocks, 256 // BLOCK + 1),
        "longformer": longformer_blocks(blocks, 2 if few else 7, 1),
        "bigbird": bigbird_blocks(blocks, HEADS, *((1, 1, 1) if few else (3, 2, 3))),
    }
    bench.each(patterns.items(), lambda item: _pattern(bench, *item, length), lambda item: item[0])


def _pattern(bench: Bench, name: str, visible: Tensor, length: int) -> None:
    shape = Shape(1, length, HEADS, WIDTH)
    layout = layout_of(visible, BLOCK, bench.device)
    density = float(layout.density(length))
    windowed = name.startswith("window")

    def by_window(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return zoo_kernels.softmax_attention(q, k, v, window=256)

    form = by_window if windowed else lambda q, k, v: zoo_kernels.softmax_attention(q, k, v, layout=layout)
    sets = draw_inputs(bench, shape, DTYPE)
    forms: dict[str, Attention] = {"ours": form, "sdpa, dense": sdpa()}
    found = bench.measure(f"{name} {shape}", {who: timed(each, sets, BOTH) for who, each in forms.items()})
    for who, timing in found.items():
        bench.add(Row(name, shape, DTYPE, who, BOTH, timing), "time", timing.median, "ms")
    if len(found) == 2:
        row = Row(name, shape, DTYPE, "ours", BOTH, found["ours"])
        ratio = found["sdpa, dense"].median / found["ours"].median
        bench.add(row, "over dense", ratio, "x", f">= {0.6 / density:.2f}")
        bench.add(row, "pairs in listed blocks", 100 * density, "%")
    mask = (lambda: causal_mask(length, bench.device, 256)) if windowed else layout.to_block_mask
    add_flex(bench, name, forms, mask)
    found = bench.measure(f"{name} forward", {who: timed(each, sets, FORWARD) for who, each in forms.items()})
    for who, timing in found.items():
        bench.add(Row(name, shape, DTYPE, who, FORWARD, timing), "time", timing.median, "ms")


def decode(bench: Bench) -> None:
    """One step after contexts of different lengths: lightning must not notice, softmax grows."""
    contexts = [1024, 4096] if bench.scale == "quick" else [1024 << i for i in range(7)]
    runs: dict[str, Run] = {}
    shapes = {context: Shape(1, context, HEADS, WIDTH) for context in contexts}
    for context, shape in shapes.items():
        with bench.guard(f"decode {context}"):
            runs |= {f"{who}, {context}": run for who, run in _steps(bench, shape).items()}
    bench.say(f"all contexts side by side: {', '.join(map(str, contexts))}")
    found = bench.measure("decode", runs)
    for context, shape in shapes.items():
        for who in ("lightning", "softmax", "sdpa"):
            timing = found.get(f"{who}, {context}")
            if timing:
                row = Row("decode", shape, DTYPE, who, FORWARD, timing)
                bench.add(row, "per token", 1e3 * timing.median, "us")
                bench.add(row, "kept", _kept(who, shape) / 2**20, "MiB")
    first, last = (found.get(f"lightning, {context}") for context in (contexts[0], contexts[-1]))
    if first and last:
        row = Row("decode, longest over shortest", shapes[contexts[-1]], DTYPE, "lightning", FORWARD)
        bench.add(row, "time per token", last.median / first.median, "x", "<= 1.1")


def _kept(who: str, shape: Shape) -> int:
    """Bytes that decoding keeps: the state, or keys and values."""
    tokens = shape.width if who == "lightning" else 2 * shape.length
    return 4 * shape.heads * shape.width * tokens


def _steps(bench: Bench, shape: Shape) -> dict[str, Run]:
    """Steps that continue from a context of random tokens."""
    with torch.no_grad():
        q, k, v, _ = (x.detach() for x in draw_inputs(bench, shape, DTYPE)[0])
        decay = slopes(HEADS, bench.device)
        state = zoo_kernels.linear_attention(q, k, v, decay, return_state=True)[1]
    assert state is not None
    last = q[:, -1].contiguous(), k[:, -1].contiguous(), v[:, -1].contiguous()
    lengths = torch.tensor([shape.length])
    heads_first = last[0][:, :, None], k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()

    @torch.no_grad()
    def peer(i: int) -> Tensor:
        return F.scaled_dot_product_attention(*heads_first)

    return {
        "lightning": lambda i: zoo_kernels.linear_attention_step(*last, decay, state),
        "softmax": lambda i: zoo_kernels.softmax_attention_step(last[0], k, v, lengths),
        "sdpa": peer,
    }
