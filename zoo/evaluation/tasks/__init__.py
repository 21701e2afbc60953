"""What an evaluation asks: one file per kind of task."""
