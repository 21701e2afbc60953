"""Cases in which linear attention is compared with its formula."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import zoo_kernels
from kernel_bench.bench import Bench, Shape
from kernel_bench.judge import Found, batch_of, judge
from kernel_bench.plain import plain_linear
from zoo_kernels import NormalizedState

LENGTHS = (1, 2, 15, 63, 64, 65, 100, 127, 129, 1000)
DECAYS = ("none", "slopes", "paper", "strong", "token")


@dataclass(frozen=True)
class LinearCase:
    """One comparison; ``documents`` are the lengths of the documents of each row, cut or stretched to ``length``."""

    name: str
    length: int = 129
    width: int = 64
    value: int = 0
    heads: int = 3
    decay: str = "slopes"
    documents: tuple[int, ...] = ()
    normalize: bool = False
    algorithm: str = "auto"
    strided: bool = False

    def __str__(self) -> str:
        return f"linear {self.name} T{self.length} D{self.width}"


def linear_cases(dry: bool) -> Iterator[LinearCase]:
    """All cases, the plainest first; a dry run has one of each kind."""
    lengths, widths, base = list(LENGTHS), [64, 128, 256], LinearCase("slopes")
    if dry:
        lengths, widths, base = [17], [16], LinearCase("slopes", length=17, width=16, heads=2)
    yield from (replace(base, length=length) for length in lengths)
    yield from (replace(base, name=decay, decay=decay) for decay in DECAYS)
    packed = replace(base, name="documents", documents=(1, 7, 64, 9, 2000))
    yield from (packed, replace(packed, name="documents,strong", decay="strong"))
    yield replace(packed, name="documents,token", decay="token")
    positive = replace(base, name="normalize", normalize=True)
    yield from (positive, replace(positive, name="normalize,documents", documents=packed.documents))
    yield replace(base, name="strided", strided=True)
    yield from (replace(base, name=a, algorithm=a) for a in ("parallel", "chunk", "scan"))
    yield from (replace(base, width=width) for width in widths[1:])
    yield replace(base, name="D,E", width=base.width - 4, value=base.width // 2 + 8)
    if not dry:
        for decay in ("none", "strong", "token"):
            yield from (replace(base, name=decay, decay=decay, length=length) for length in (1, 63, 65, 1000))
        yield from (replace(base, width=width, length=1000, decay="token", name="token") for width in widths)
        yield replace(base, name="long", length=4097, heads=2)


def decays_of(kind: str, batch: int, length: int, heads: int, device: torch.device) -> Tensor | None:
    """Log decays, fp32: ``(H,)`` or ``(B, T, H)``, or None."""
    index = torch.arange(heads, dtype=torch.float32, device=device)
    if kind == "token":
        return -20 * torch.rand(batch, length, heads, device=device) ** 4
    table = {"slopes": -(2 ** (-8 * (index + 1) / heads)), "paper": -7 * index / heads, "strong": 0 * index - 20}
    return table.get(kind)


def documents_of(lengths: tuple[int, ...], x: Tensor) -> Tensor | None:
    """Ids of the tokens of x ``(B, T, ...)``, neither sorted nor dense; the first document is shorter by row."""
    if not lengths:
        return None
    batch, length = x.shape[:2]
    ids = torch.cat([torch.full((n,), (7 * i + 3) % 11) for i, n in enumerate(lengths)])
    ids = torch.nn.functional.pad(ids, (0, max(0, length + batch - len(ids))), value=99)
    return torch.stack([ids[row : row + length] for row in range(batch)]).to(x.device)


def check_linear(bench: Bench, dtype: torch.dtype, case: LinearCase) -> None:
    """Compare outputs, states and all gradients."""
    batch, value = max(2, batch_of(bench, case.length)), case.value or case.width
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        if case.strided:
            return torch.randn(shape[0], shape[2], shape[1], shape[3], device=bench.device).to(dtype).transpose(1, 2)
        return torch.randn(*shape, device=bench.device).to(dtype)

    token = (batch, case.length, case.heads)
    arrays = {"q": draw(*token, case.width), "k": draw(*token, case.width), "v": draw(*token, value)}
    if case.normalize:  # a normalizer of one sign, as feature maps give it
        arrays |= {name: arrays[name].abs() + 0.1 for name in ("q", "k")}
    columns = value + case.normalize
    arrays["state"] = torch.randn(batch, case.heads, case.width, columns, device=bench.device)
    if case.normalize:
        arrays["state"] = arrays["state"].abs()
    decay = decays_of(case.decay, batch, case.length, case.heads, bench.device)
    if decay is not None:
        arrays["decay"] = decay
    upstream = draw(*token, value), torch.randn_like(arrays["state"])
    run = partial(_passes, bench, case, arrays, upstream)
    shape = Shape(batch, case.length, case.heads, case.width)
    judge(bench, str(case), shape, dtype, run("ours", dtype), run("plain", dtype), run("plain", torch.float64))


def _passes(
    bench: Bench,
    case: LinearCase,
    arrays: dict[str, Tensor],
    upstream: tuple[Tensor, Tensor],
    form: str,
    dtype: torch.dtype,
) -> Found:
    wide = torch.promote_types(dtype, torch.float32)
    x = {n: a.detach().to(dtype if n in "qkv" else wide).requires_grad_() for n, a in arrays.items()}
    documents = documents_of(case.documents, arrays["q"])
    scale, q, k, v, decay = case.width**-0.5, x["q"], x["k"], x["v"], x.get("decay")
    if form == "plain":
        o, last = plain_linear(q, k, v, decay, x["state"], documents, scale, case.normalize)
    else:
        s = x["state"]
        initial = NormalizedState(s[..., :-1], s[..., -1]) if case.normalize else s
        how = {"scale": scale, "normalize": case.normalize, "documents": documents, "algorithm": case.algorithm}
        o, last = bench.ours(zoo_kernels.linear_attention)(
            q, k, v, decay, initial_state=initial, return_state=True, **how
        )
        last = torch.cat([last.s, last.z[..., None]], -1) if isinstance(last, NormalizedState) else last
    total = (o * upstream[0].to(o.dtype)).sum() + (last * upstream[1].to(last.dtype)).sum()
    grads = dict(zip(x, torch.autograd.grad(total, list(x.values()))))
    return {"output": o, "last state": last, **{f"grad {name}": g for name, g in grads.items()}}
