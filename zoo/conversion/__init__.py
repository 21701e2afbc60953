"""Conversion of trained runs to other architectures."""
