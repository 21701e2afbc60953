"""Short convolution: what many attentions mix a few neighboring tokens with."""

from zoo_kernels.convolution.api import short_convolution

__all__ = ["short_convolution"]
