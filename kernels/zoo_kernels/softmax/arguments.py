"""What the ops of softmax attention take."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.mask import KeyRule


class SoftmaxArguments(NamedTuple):
    """Arguments of softmax attention, as in :func:`zoo_kernels.softmax_attention` where nothing else is said.

    Attributes:
        documents: with a layout, which is packed already, only for the bias; the reference packs nothing.
        layout: tensors of a BlockLayout with blocks of ``block`` tokens; empty for none.
        scale: above 0.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    documents: Tensor | None
    block_bias: Tensor | None
    layout: list[Tensor]
    block: int
    window: int | None
    sink_tokens: int
    scale: float
    backend: str

    @property
    def rule(self) -> KeyRule:
        """Which keys a query may read."""
        return KeyRule(self.k.shape[1] - self.q.shape[1], self.window, self.sink_tokens, self.documents)

    @property
    def lists(self) -> BlockLayout | None:
        """The layout."""
        return BlockLayout.from_tensors(self.block, self.layout) if self.layout else None


class SoftmaxUpstream(NamedTuple):
    """What the backward pass takes besides: outputs, their gradients, whether the bias has one."""

    output: Tensor
    lse: Tensor
    grad_output: Tensor
    grad_lse: Tensor | None
    bias_gradient: bool


class SoftmaxToken(NamedTuple):
    """Arguments of a step, as in :func:`zoo_kernels.softmax_attention_step`."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    lengths: Tensor
    window: int | None
    sink_tokens: int
    ring: bool
    scale: float
    backend: str
