"""Triton kernels of exact softmax attention."""
