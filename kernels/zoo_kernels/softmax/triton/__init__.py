"""Triton kernels of exact attention."""
