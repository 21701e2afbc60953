"""Exact softmax attention."""

from kernels.softmax.op import softmax_attention, softmax_attention_step

__all__ = ["softmax_attention", "softmax_attention_step"]
