"""Tools for development of the Triton kernels: compile them without a GPU, call each of them, tune their tiles."""
