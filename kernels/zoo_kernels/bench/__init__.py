"""Speed and correctness of the kernels: one registry of cases that the families feed, one runner, one report.

What is checked are the calls of every family's ``calls.py``. What is timed a family hands in under ``@piece`` in
``zoo_kernels/FAMILY/bench_cases.py``. ``scripts/bench_kernels.py`` runs them.
"""
