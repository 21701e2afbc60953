"""RWKV-7, Goose: a delta rule whose reads, erases and decays are vectors (Peng et al. 2025, arXiv:2503.14456).

    S_t = (Diag(exp w_t) - (a_t * u_t) u_t^T) S_{t-1} + k'_t v_t^T,   o_t = r_t S_t,   u_t = unit(c * k_t),
    k'_t = k_t (1 + (a_t - 1) d),   y_t = W_o (g_t * (groupnorm(o_t) + (r_t . (e * k'_t)) v_t)),
    w_t = -0.6065 sigmoid(w_0 + A tanh(B x^w_t)),   a_t = sigmoid(a_0 + A B x^a_t),   g_t = A sigmoid(B x^g_t),
    r, k, v = W x^r, W x^k, W x^v;   in later layers v_t moves to that of the first by sigmoid(v_0 + A B x^v_t)

where x^z = x_t + m_z (x_{t-1} - x_t), with m, c, d, e learned per channel, and A B are matrices of low rank, each its
own. The state is read before it decays; in the kernel's terms it is read at u exp(-w), which is at most 1.84 u. "First"
is the first layer of this kind that a pass of the model meets, and a layer by itself is that one. Published: heads of
64; ranks of 2.5, 2.5, 1.7 and 5 times sqrt(C), rounded to 32; the initial values of the authors' code (RWKV-LM).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.mixers.base import Cost, Mixer
from zoo.mixers.caches import ConvolvedCache, real_tokens
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import delta_flops, delta_step_flops, state_bytes
from zoo.mixers.parts.decays import wide
from zoo.mixers.parts.delta import Rule, attend_delta
from zoo.mixers.parts.heads import share_of_width
from zoo.mixers.parts.low_rank import LowRank
from zoo.mixers.parts.options import Rank
from zoo.mixers.registry import register
from zoo_kernels import short_convolution

SHIFTED = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}  # powers of the initial m
FIRST, VALUES = "rwkv7.first", "rwkv7.values"  # of what the layers of a pass share
FASTEST = -0.6065306597126334  # -exp(-1/2), of the log decay


def rank_of(width: int, factor: float) -> int:
    """The published rank for a model of this width."""
    return max(32, round(factor * width**0.5 / 32) * 32)


@register("rwkv7")
class RWKV7(Mixer):
    """The time mixing of RWKV-7.

    Args:
        decay_rank: rank of the projection to the decay w; None for the published one.
        rate_rank: rank of the projection to the rate a; None for the published one.
        value_rank: rank of the projection to v's move; None for the published one.
        gate_rank: rank of the projection to the gate g; None for the published one.

    Raises:
        ValueError: on values outside these.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int = 1,
        layer: int = 0,
        decay_rank: Rank = None,
        rate_rank: Rank = None,
        value_rank: Rank = None,
        gate_rank: Rank = None,
    ) -> None:
        super().__init__(width, heads, depth, layer)
        self.head_dim = share_of_width(width, heads, option=None)
        ratio = layer / max(depth - 1, 1)
        place = torch.arange(width) / width
        self.shifts = nn.ParameterDict(
            {name: nn.Parameter(1 - place ** (power * (1 - layer / depth))) for name, power in SHIFTED.items()}
        )
        self.receptance, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        line = torch.arange(width) / max(width - 1, 1)
        bend = self._bend()
        self.decay = LowRank(width, decay_rank or rank_of(width, 2.5), width, bias=True, between=torch.tanh)
        self.rate = LowRank(width, rate_rank or rank_of(width, 2.5), width, bias=True)
        self.gate = LowRank(width, gate_rank or rank_of(width, 5), width, between=torch.sigmoid)
        self.move = LowRank(width, value_rank or rank_of(width, 1.7), width, bias=True) if layer else None
        self.decay.bias = nn.Parameter(-5.5 + 6 * line ** (1 + ratio**0.3) + 2.5 * bend)
        self.rate.bias = nn.Parameter(-0.19 + 0.3 * bend + 0.4 * (line - 0.5))
        if self.move is not None:
            self.move.bias = nn.Parameter(0.73 - 0.4 * (line - 0.5))
        self.unit_scale = nn.Parameter(0.71 - 0.1 * (line - 0.5))
        self.key_rate = nn.Parameter(torch.full((width,), 1.02))
        self.bonus = nn.Parameter(torch.full((heads, self.head_dim), -0.04))
        self.norm = nn.GroupNorm(heads, width, eps=1e-5 * self.head_dim)
        nn.init.constant_(self.norm.weight, ((layer + 1) / depth) ** 0.7)
        self.out = nn.Linear(width, width, bias=False)

    def _bend(self) -> Tensor:
        """From -1 to 1 over the channels of each head, flat in the middle."""
        place = torch.linspace(-1, 1, self.head_dim) if self.head_dim > 1 else torch.zeros(1)
        return (place * place.abs()).repeat(self.heads)

    @torch.no_grad()
    def reset_parameters(self, std: float, out_std: float) -> None:
        """Draws orthogonal projections, a tenth of one for keys; matrices of low rank and ``out`` give 0 at first."""
        for matrix, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            nn.init.orthogonal_(matrix.weight, gain)
        for low in (self.decay, self.rate, self.gate, *([] if self.move is None else [self.move])):
            nn.init.zeros_(low.down.weight)
            nn.init.orthogonal_(low.up.weight, 0.1)
        nn.init.zeros_(self.out.weight)

    def forward(
        self,
        x: Tensor,
        *,
        documents: Tensor | None = None,
        separators: Tensor | None = None,
        cache: Any = None,
        lengths: Tensor | None = None,
        carry: dict[str, Any] | None = None,
    ) -> Tensor:
        self.check_call(x, documents, cache, lengths, separators)
        if not x.shape[0] * x.shape[1]:
            return self.out(x)
        if lengths is not None:  # a weight of 0 does not hide NaN
            x = x.masked_fill(~real_tokens(lengths, x)[..., None], 0)
        call = Call(x, x.new_empty(0), documents, separators, cache, lengths)
        shift = self._before(x, call) - x
        parts = {name: torch.addcmul(x, shift, weight.to(x.dtype)) for name, weight in self.shifts.items()}
        r, k, v = (
            self.receptance(parts["r"]),
            self.key(parts["k"]),
            self._values(parts["v"], {} if carry is None else carry),
        )
        rate = wide(self.rate(parts["a"])).sigmoid()
        log_decay = FASTEST * wide(self.decay(parts["w"])).sigmoid()
        read = F.normalize(self._heads(wide(k) * wide(self.unit_scale)), dim=-1)
        k = (wide(k) * (1 + (rate - 1) * wide(self.key_rate))).to(v.dtype)
        r, k, v, rate, log_decay = (self._heads(part) for part in (r, k, v, rate, log_decay))
        erase, read = (rate * read).to(v.dtype), (read * (-log_decay).exp()).to(v.dtype)
        y = wide(attend_delta(Rule(r, k, v, log_decay, read=read, erase=erase), call))
        of_norm = wide(self.norm.weight), wide(self.norm.bias), self.norm.eps
        y = F.group_norm(y.flatten(2).flatten(0, 1), self.heads, *of_norm).view(*y.shape)
        y = y + (wide(r) * wide(k) * wide(self.bonus)).sum(-1, keepdim=True) * wide(v)
        out: Tensor = self.out(y.flatten(-2).to(v.dtype) * self.gate(parts["g"]))
        return out

    def prepare(self, carry: dict[str, Any], x: Tensor, documents: Tensor | None = None, cache: Any = None) -> None:
        """Puts the number of the first layer of this kind into ``carry``."""
        carry.setdefault(FIRST, self.layer)

    def hands_on(self, carry: dict[str, Any]) -> bool:
        """Whether it is the first layer of this kind, whose values the others read."""
        return bool(carry[FIRST] == self.layer)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))

    def _before(self, x: Tensor, call: Call) -> Tensor:
        """The token before each in its document, zeros before the first: a convolution of two tokens."""
        weight = x.new_tensor([1.0, 0.0]).expand(self.width, 2)
        if call.cache is None:
            return short_convolution(x, weight, documents=call.documents)[0]
        y, tail = short_convolution(
            x, weight, initial=call.cache.tail.to(x.dtype), lengths=call.lengths, return_state=True
        )  # fmt: skip
        call.cache.keep_tail(tail)
        return y

    def _values(self, x: Tensor, carry: dict[str, Any]) -> Tensor:
        """Values, moved to those of the first layer of this kind, which are left in ``carry``."""
        v: Tensor = self.value(x)
        first: Tensor = carry.setdefault(VALUES, v)
        if self.move is None:
            return v
        return torch.lerp(v, first.to(v.dtype), self.move(x).sigmoid())

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> ConvolvedCache:
        """The state, in fp32 unless ``dtype`` is wider, and the last token."""
        shape = (batch_size, self.heads, self.head_dim, self.head_dim)
        return ConvolvedCache(shape, (1, self.width), device, dtype)

    def kept_numbers(self) -> int:
        """Six mixtures of a token and the one before, what is made of each, and what the kernel takes."""
        return 20 * self.width

    def cost(self, context: int, dtype: torch.dtype = torch.bfloat16) -> Cost:
        """The projections, the token before as a convolution of two, and the delta rule."""
        matrices = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear)) + 2 * self.width
        sizes = self.heads, self.head_dim, self.head_dim
        return Cost(
            parameters=sum(p.numel() for p in self.parameters()),
            flops_per_token=2 * matrices + delta_flops(*sizes, max(context, 1), general=True, by_channel=True),
            decode_flops_per_token=2 * matrices + delta_step_flops(*sizes, general=True),
            cache_bytes=state_bytes(*sizes, dtype) + self.width * dtype.itemsize,
        )
