"""Evaluation of a run folder: tasks, scoring, statistics, result files and plots."""
