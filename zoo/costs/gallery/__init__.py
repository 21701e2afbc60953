"""Plots of every attention: its weights, and its costs."""
