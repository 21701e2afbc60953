"""Sweeps: fair comparisons of matched models, which can be interrupted and resumed, and their report."""
