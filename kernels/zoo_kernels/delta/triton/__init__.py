"""Triton kernels of delta attention."""
