"""Speed and correctness of the kernels: one registry of cases that the families feed, one runner, one report.

A family hands in its cases in ``zoo_kernels/FAMILY/cases.py``: functions under ``@piece`` that yield a Check (one call
against its reference) or a Case (implementations timed side by side). ``scripts/bench_kernels.py`` is the command line.
"""
