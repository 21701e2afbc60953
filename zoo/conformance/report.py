"""Findings of the checks of a module, and their table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "FAILED", "not offered", "left out"]


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        check: name of the check.
        verdict: ``passed``, ``FAILED``, ``not offered`` by the module, or ``left out``.
        detail: the smallest case that fails; otherwise what was compared, or why nothing was.
    """

    check: str
    verdict: Verdict
    detail: str

    def __str__(self) -> str:
        return f"{self.check}: {self.detail}"


@dataclass(frozen=True)
class Report:
    """Results of all checks of one module; as text, a table.

    Attributes:
        subject: what was checked, and how.
        findings: one for each check, in the order in which they ran.
    """

    subject: str
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> list[Finding]:
        """Findings of the checks that fail."""
        return [finding for finding in self.findings if finding.verdict == "FAILED"]

    @property
    def passed(self) -> bool:
        """Whether no check fails; what a module does not offer does not count."""
        return not self.failures

    def __str__(self) -> str:
        name, verdict = (max(len(getattr(f, key)) for f in self.findings) for key in ("check", "verdict"))
        rows = [f"  {f.check:{name}}  {f.verdict:{verdict}}  {f.detail}" for f in self.findings]
        counts = Counter(f.verdict for f in self.findings)
        return "\n".join([self.subject, "", *rows, "", ", ".join(f"{n} {word}" for word, n in counts.items())])
