"""Comparisons that are fair: matched sizes, sweeps that can be stopped, and their report."""
