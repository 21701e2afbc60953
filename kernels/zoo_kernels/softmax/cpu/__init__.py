"""PyTorch forms of exact softmax attention, of which :mod:`zoo_kernels.softmax.cpu.forms` chooses one."""
