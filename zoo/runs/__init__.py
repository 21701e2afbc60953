"""Run folders: what a run keeps, and what can be read from it."""
