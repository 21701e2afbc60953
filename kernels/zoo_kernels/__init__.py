"""Attention kernels as functions of tensors, independent of models and configurations.

Arrays are ``(B, T, H, D)``: batch, time, heads, head width. Importing this package initializes no device and needs only
torch.
"""

from zoo_kernels.backend import BackendError, use_backend
from zoo_kernels.convolution import short_convolution
from zoo_kernels.delta import delta_attention, delta_attention_step
from zoo_kernels.layout import BlockLayout
from zoo_kernels.linear import NormalizedState, linear_attention, linear_attention_step
from zoo_kernels.softmax import softmax_attention, softmax_attention_step

__all__ = [
    "BackendError",
    "BlockLayout",
    "NormalizedState",
    "delta_attention",
    "delta_attention_step",
    "linear_attention",
    "linear_attention_step",
    "short_convolution",
    "softmax_attention",
    "softmax_attention_step",
    "use_backend",
]
