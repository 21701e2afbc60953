"""Arguments of the custom ops of softmax attention."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from zoo_kernels.layout import BlockLayout
from zoo_kernels.softmax.mask import KeyRule


class SoftmaxArguments(NamedTuple):
    """Arguments of the forward op of softmax attention.

    The fields not listed are as in :func:`zoo_kernels.softmax_attention`.

    Attributes:
        documents: with a layout, which is packed already, they serve only the bias; the reference form packs nothing.
        layout: tensors of a BlockLayout; empty for none.
        block: tokens of a block of the layout.
        scale: factor of the scores, above 0.
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
        """Rule of which keys a query may read."""
        return KeyRule(self.k.shape[1] - self.q.shape[1], self.window, self.sink_tokens, self.documents)

    @property
    def lists(self) -> BlockLayout | None:
        """The layout, rebuilt from its tensors; None without one."""
        return BlockLayout.from_tensors(self.block, self.layout) if self.layout else None


class SoftmaxUpstream(NamedTuple):
    """Further arguments of the backward op of softmax attention.

    Attributes:
        output: output of the forward pass.
        lse: log-sum-exp of the forward pass.
        grad_output: gradient of the output.
        grad_lse: gradient of the log-sum-exp, or None.
        bias_gradient: whether the gradient of the block bias is wanted.
    """

    output: Tensor
    lse: Tensor
    grad_output: Tensor
    grad_lse: Tensor | None
    bias_gradient: bool


class SoftmaxToken(NamedTuple):
    """Arguments of the op for one token, as in :func:`zoo_kernels.softmax_attention_step`."""

    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    lengths: Tensor
    window: int | None
    sink_tokens: int
    ring: bool
    scale: float
    backend: str
