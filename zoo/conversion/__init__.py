"""Runs of this project in programs of others."""
