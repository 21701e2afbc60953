"""Optimizers and their groups of parameters."""
