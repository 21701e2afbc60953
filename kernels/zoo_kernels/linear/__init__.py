"""Linear attention with decay."""

from zoo_kernels.linear.api import NormalizedState, linear_attention, linear_attention_step

__all__ = ["NormalizedState", "linear_attention", "linear_attention_step"]
