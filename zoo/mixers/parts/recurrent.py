"""What mixers with a state of constant size share: the call of the kernel or of the cache, and what a state costs."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.mixers.parts.cache import StateCache
from zoo.mixers.parts.costs import linear_flops, linear_step_flops, state_bytes
from zoo.mixers.parts.heads import Call, HeadMixer
from zoo_kernels import linear_attention
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
        log_decay: None, ``(H,)`` or ``(B, T, H)``, all <= 0.
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
    return call.cache.attend(q, k, v, log_decay, call.lengths, scale=scale, eps=eps, algorithm=algorithm, wide=wide)


class StateMixer(HeadMixer):
    """Base of mixers whose cache is one state per head; a subclass writes ``mix`` and may widen its keys.

    Attributes:
        key_width: width D of a key after its feature map.
        normalize: whether the state has a normalizer.
        algorithm: algorithm of the kernel, for mixers that leave the choice.

    Raises:
        ValueError: on an algorithm that the kernel does not have.
    """

    normalize: bool = False
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
    ) -> StateCache:
        """Returns a cache of the state, in fp32 unless ``dtype`` is wider; ``capacity`` is ignored."""
        shape = (batch_size, self.heads, self.key_width, self.value_dim)
        return StateCache(shape, device, dtype, self.normalize)

    def mixing_flops(self, context: int) -> float:
        """The lower half of each chunk's products, and the state written and read once per token."""
        return linear_flops(self.heads, self.key_width, self.value_dim + self.normalize, context, self.algorithm)

    def step_flops(self, context: int) -> float:
        """The state written and read."""
        return linear_step_flops(self.heads, self.key_width, self.value_dim, self.normalize)

    def cache_bytes(self, context: int, dtype: torch.dtype) -> int:
        """The state, whatever the context."""
        return state_bytes(self.heads, self.key_width, self.value_dim + self.normalize, dtype)
