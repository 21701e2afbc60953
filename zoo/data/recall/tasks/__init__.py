"""Recall tasks, one file each."""
