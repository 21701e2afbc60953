"""Exact softmax attention."""

from zoo_kernels.softmax.api import explain, softmax_attention, softmax_attention_step
from zoo_kernels.softmax.step import ring_slots

__all__ = ["explain", "ring_slots", "softmax_attention", "softmax_attention_step"]
