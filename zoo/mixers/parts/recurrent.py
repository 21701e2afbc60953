"""What mixers with a state of constant size share: the call of the kernel or of the cache, and what a state costs."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.mixers.caches import Cache, StateCache
from zoo.mixers.parts.call import Call
from zoo.mixers.parts.costs import delta_flops, linear_flops, linear_step_flops, state_bytes
from zoo.mixers.parts.heads import HeadMixer
from zoo_kernels import linear_attention, linear_attention_step
from zoo_kernels.linear import NormalizedState
from zoo_kernels.linear.api import ALGORITHMS


def attend_linear(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    call: Call,
    *,
    scale: float = 1.0,
    normalize: bool = False,
    eps: float = 1e-6,
    algorithm: str = "auto",
) -> Tensor:
    """Linear attention ``S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T``, ``o_t = scale * q_t S_t``.

    It runs through the cache of the call, if there is one. Padding of a ragged piece is neither added nor decays the
    state, whatever the feature map makes of it.

    Args:
        q: queries ``(B, T, H, D)``.
        k: keys ``(B, T, H, D)``.
        v: values ``(B, T, H, E)``.
        log_decay: None, ``(H,)``, ``(B, T, H)`` or ``(B, T, H, D)``, all <= 0.
        call: arguments of the mixer; its cache is None or a :class:`StateCache`, with a normalizer exactly if
            ``normalize``.
        scale: as in :func:`zoo_kernels.linear_attention`.
        normalize: as in :func:`zoo_kernels.linear_attention`.
        eps: as in :func:`zoo_kernels.linear_attention`.
        algorithm: as in :func:`zoo_kernels.linear_attention`.

    Returns:
        ``(B, T, H, E)`` in the dtype of q; sums that are not divided by their weights are in fp32 where that is fp16,
        which cannot hold them: the mixer norms them first.

    Raises:
        ValueError: if ``normalize`` does not go with the cache.
    """
    wide = q.dtype == torch.float16 and not normalize
    if call.cache is None:
        y, _ = linear_attention(
            q, k, v, log_decay, scale=scale, normalize=normalize, eps=eps, documents=call.documents,
            algorithm=algorithm, wide=wide,
        )  # fmt: skip
        return y
    if normalize != (call.cache.normalizer is not None):
        raise ValueError(f"normalize={normalize} needs a StateCache that was made with normalize={normalize}.")
    kept = call.cache.state if not normalize else NormalizedState(call.cache.state, call.cache.normalizer)
    if q.shape[1] == 1 and call.lengths is None and not torch.is_grad_enabled():  # in place, and without a gradient
        decay = log_decay[:, 0] if log_decay is not None and log_decay.dim() > 1 else log_decay
        call.cache.advance(1, None)
        return linear_attention_step(
            q[:, 0], k[:, 0], v[:, 0], decay, kept, scale=scale, normalize=normalize, eps=eps, wide=wide
        )[:, None]  # fmt: skip
    k, v, log_decay = blank_padding(k, v, log_decay, call)
    y, after = linear_attention(
        q, k, v, log_decay, scale=scale, normalize=normalize, eps=eps, initial_state=kept, return_state=True,
        algorithm=algorithm, wide=wide,
    )  # fmt: skip
    call.cache.replace(*((after.s, after.z) if isinstance(after, NormalizedState) else (after,)))
    call.cache.advance(q.shape[1], call.lengths)
    return y


def blank_padding(k: Tensor, v: Tensor, log_decay: Tensor | None, call: Call) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and decay with zeros on the padding of a ragged piece: it adds nothing, and nothing decays."""
    real = call.real()
    if real is None:
        return k, v, log_decay
    k, v = (x.masked_fill(~real[..., None, None], 0) for x in (k, v))
    if log_decay is not None:
        log_decay = log_decay if log_decay.dim() > 1 else log_decay.expand(*real.shape, -1)
        log_decay = log_decay.masked_fill(~real.view(*real.shape, *(1,) * (log_decay.dim() - 2)), 0)
    return k, v, log_decay


class StateMixer(HeadMixer):
    """Base of mixers whose cache is one state per head; a subclass writes ``mix`` and may widen its keys.

    Attributes:
        key_width: width D of a key after its feature map.
        normalize: whether the state has a normalizer.
        by_channel: whether each channel of a key decays by itself.
        algorithm: algorithm of the kernel, for mixers that leave the choice.

    Raises:
        ValueError: on an algorithm that the kernel does not have.
    """

    normalize: bool = False
    by_channel: bool = False
    _algorithm: str = "auto"

    @property
    def algorithm(self) -> str:
        """One of ``zoo_kernels.linear.api.ALGORITHMS``."""
        return self._algorithm

    @algorithm.setter
    def algorithm(self, name: str) -> None:
        if name not in ALGORITHMS:
            raise ValueError(f"algorithm={name!r}: expected one of {', '.join(ALGORITHMS)}.")
        self._algorithm = name

    @property
    def key_width(self) -> int:
        """That of the heads, unless a feature map changes it."""
        return self.head_dim

    @property
    def normalized(self) -> bool:
        """Where the state has a normalizer."""
        return self.normalize

    def new_cache(
        self,
        batch_size: int,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Cache:
        """The state, in fp32 unless ``dtype`` is wider; ``capacity`` does not matter."""
        shape = (batch_size, self.heads, self.key_width, self.value_dim)
        return StateCache(shape, device, dtype, self.normalize)

    def mixing_flops(self, context: int) -> float:
        """The lower half of each chunk's products, and the state written and read once per token."""
        if self.by_channel:
            sizes = self.heads, self.key_width, self.value_dim
            return delta_flops(*sizes, context, erases=False, by_channel=True)
        return linear_flops(self.heads, self.key_width, self.value_dim + self.normalize, context, self.algorithm)

    def step_flops(self, context: int) -> float:
        """The state written and read."""
        return linear_step_flops(self.heads, self.key_width, self.value_dim, self.normalize)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """The state, whatever the context."""
        return state_bytes(self.heads, self.key_width, self.value_dim + self.normalize, dtype)
