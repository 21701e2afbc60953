"""Costs of a model before it is trained or served: roofline, tiles, matching, textbook answers and plots."""
