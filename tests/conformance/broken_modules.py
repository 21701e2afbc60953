"""A right module with everything of the contract, and others that break it in one way each."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningSum(nn.Module):
    """Sums of the projected tokens so far, of the same document."""

    def __init__(self, width, heads=1):
        super().__init__()
        self.project = nn.Linear(width, width)

    def new_cache(self, batch_size, dtype=None):
        return {"total": torch.zeros(batch_size, 1, self.project.out_features, dtype=dtype)}

    def forward(self, x, *, documents=None, cache=None, lengths=None):
        v = self.project(x)
        if lengths is not None:
            v = v.masked_fill((torch.arange(x.shape[1]) >= lengths[:, None])[..., None], 0)
        if documents is not None:
            return self.own_documents(documents).to(v) @ v
        y = v.cumsum(1)
        if cache is not None:
            y = y + cache["total"]
            cache["total"] = y[:, -1:]
        return y

    def own_documents(self, documents):
        return (documents[:, :, None] == documents[:, None]).tril()


class Plain(nn.Module):
    """Running sums with neither documents nor a cache."""

    def __init__(self, width):
        super().__init__()
        self.inner = RunningSum(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class LeakOfOneToken(Plain):
    def forward(self, x):
        return super().forward(x) + nn.functional.pad(x[:, 1:], (0, 0, 0, 1))


class LeakThroughAChoice(Plain):
    """The largest of all tokens decides a sign, which has no gradient."""

    def forward(self, x):
        return super().forward(x) * x.sum((1, 2), keepdim=True).sign()


class LeakOfTheGradient(Plain):
    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        return super().forward(x) + (mean - mean.detach())


class LeakOverABlock(Plain):
    """Tokens 4 to 7 of each full block of 8 reach the token before them."""

    def forward(self, x):
        y = super().forward(x).clone()
        for start in range(0, x.shape[1] - 7, 8):
            y[:, start + 3] += x[:, start + 4 : start + 8].sum(1)
        return y


class BatchNorm(Plain):
    def forward(self, x):
        return super().forward(x) - x.mean(0)


class DividedByLength(Plain):
    def forward(self, x):
        return super().forward(x) / x.shape[1]


class WrongDtype(Plain):
    def forward(self, x):
        return super().forward(x).float()


class Stateful(Plain):
    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class Random(Plain):
    def forward(self, x):
        return nn.functional.dropout(super().forward(x))


class GraphBreak(Plain):
    def forward(self, x):
        return super().forward(x) if x.sum().item() > 0 else self.inner(x)


class NoGradient(Plain):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


class Dead(Plain):
    def forward(self, x):
        return super().forward(x * 0)


class NotFinite(Plain):
    def forward(self, x):
        return super().forward(x).masked_fill(torch.arange(x.shape[1])[:, None] == 4, torch.inf)


class EvenOnly(Plain):
    def forward(self, x):
        if x.shape[1] % 2:
            raise RuntimeError("an even\nlength, please")
        return super().forward(x)


class Tuple(Plain):
    def forward(self, x):
        return super().forward(x), None


class CoarseInHalf(Plain):
    """Of half precision only three bits are kept."""

    def forward(self, x):
        y = super().forward(x)
        return y if y.dtype in (torch.float32, torch.float64) else (y * 2).round() / 2


class LeakThroughDocuments(RunningSum):
    def own_documents(self, documents):
        return torch.ones_like(documents[:, :, None] == documents[:, None]).tril()


class CacheThatForgets(RunningSum):
    """Single tokens are not remembered."""

    def forward(self, x, *, documents=None, cache=None, lengths=None):
        kept = None if cache is None else cache["total"]
        y = super().forward(x, documents=documents, cache=cache, lengths=lengths)
        if cache is not None and x.shape[1] == 1:
            cache["total"] = kept
        return y


class SharedCache(RunningSum):
    """What is remembered lies in the module, so that two caches are one."""

    def new_cache(self, batch_size, dtype=None):
        self.held = super().new_cache(batch_size, dtype)
        return self

    def forward(self, x, *, cache=None):
        return super().forward(x, cache=None if cache is None else self.held)


class PaddingThatCounts(RunningSum):
    def forward(self, x, *, documents=None, cache=None, lengths=None):
        return super().forward(x, documents=documents, cache=cache)
