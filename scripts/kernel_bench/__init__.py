"""Pieces of scripts/bench_kernels.py: what is measured, how it is timed, and how it is told."""
