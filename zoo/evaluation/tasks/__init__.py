"""Tasks of an evaluation, one file per kind."""
