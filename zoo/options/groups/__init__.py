"""Options of each group of configs/: types, ranges, meanings."""
