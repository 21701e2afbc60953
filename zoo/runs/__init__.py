"""Run folders: their content, and how it is read."""
