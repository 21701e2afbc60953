"""Typed options: types, ranges, choices, units and meanings, each declared once and checked first.

``base`` has what every group shares, ``messages`` the one-line errors, and ``arguments`` the arguments of scripts.
Nothing here imports Lightning, transformers or datasets.
"""

from zoo.schema.base import Count, Flag, Number, Options, Positive, Text, Whole, option

__all__ = ["Count", "Flag", "Number", "Options", "Positive", "Text", "Whole", "option"]
