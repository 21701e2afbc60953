"""Schemas of all configurations: types, ranges, choices, units and meanings, each declared once and checked first.

``base`` has what every group shares, ``messages`` the one-line errors, ``compose`` the composition through Hydra, and
``usage`` the text of ``--help``. Nothing here imports Lightning, transformers or datasets.
"""

from zoo.schema.base import Count, Flag, Number, Options, Positive, Text, Whole, option

__all__ = ["Count", "Flag", "Number", "Options", "Positive", "Text", "Whole", "option"]
