"""Speed and correctness of the kernels: one registry of cases that the families feed, one runner, one report.

A family hands in its cases in ``zoo_kernels/FAMILY/bench_cases.py``: functions under ``@piece`` that yield a Check (a
case against its reference) or a Timed (a case beside other implementations). ``scripts/bench_kernels.py`` runs them.
"""
