"""Packages from outside of the tree."""
