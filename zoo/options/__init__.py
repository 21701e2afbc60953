"""Options of the configuration groups and of the programs: types, ranges, meanings, and the checks across them."""
