"""Checks of the contract of a causal token mixer, for any module."""

from zoo.conformance.report import Finding, Report
from zoo.conformance.suite import check

__all__ = ["Finding", "Report", "check"]
