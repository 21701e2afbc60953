"""Delta attention: linear attention that erases before it writes."""

from zoo_kernels.delta.api import delta_attention, delta_attention_step

__all__ = ["delta_attention", "delta_attention_step"]
