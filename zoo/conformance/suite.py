"""The list of checks, and their run over one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.conformance import caching, causality, precision
from zoo.conformance.candidate import Candidate, say
from zoo.conformance.report import Finding, Report
from zoo.conformance.search import Case, find_smallest, try_case
from zoo.conformance.target import Factory, make_module

LONGEST = 133  # two blocks of 64 tokens and a tail
SHAPES = (1, 2, 3, 5, 17, 33, 63, 64, 65, 128)  # tokens at which shapes are looked at, and at the longest input


@dataclass(frozen=True)
class Check:
    """One property of the contract.

    Attributes:
        name: name of the check.
        case: returns what fails at a length, None if nothing does.
        compared: text of the table if nothing fails.
        missing: returns what the check needs and the module does not offer, None if it offers it.
    """

    name: str
    case: Case
    compared: str
    missing: Callable[[Candidate], str | None] = lambda candidate: None


def _needs_documents(candidate: Candidate) -> str | None:
    return None if candidate.offers("documents") else "forward takes no documents"


def _needs_cache(candidate: Candidate) -> str | None:
    return None if candidate.offers_cache else "no new_cache(batch_size) and forward(x, cache=)"


def _needs_lengths(candidate: Candidate) -> str | None:
    return _needs_cache(candidate) or (None if candidate.offers("lengths") else "forward takes no lengths")


CHECKS = (
    Check("reads its input", precision.reads_its_input, "outputs change with the input"),
    Check("equal calls", caching.repeated_calls, "two equal calls agree, others between them"),
    Check("future, by outlier", causality.future_by_outlier, "changed tokens, also by 1e4, change nothing before them"),
    Check("future, by gradient", causality.future_by_gradient, "no gradient from an output to a later token"),
    Check("length", causality.length_of_sequence, "the first tokens alone give the same"),
    Check("batch", causality.other_rows, "a row alone gives the same as among three"),
    Check("documents", causality.packed_documents, "packed equals each alone", _needs_documents),
    Check("cache", caching.splits_of_a_cache, "any split equals the whole", _needs_cache),
    Check("ragged rows", caching.ragged_rows, "padded rows equal each alone", _needs_lengths),
    *(
        Check(name, precision.one_dtype(name), "runs, keeps the dtype, errs as rounding does")
        for name in precision.DTYPES
    ),
)
COMPILE = Check("compile", precision.compiled, "one graph, equal outputs")


def check(
    module_or_factory: nn.Module | Factory | str,
    *,
    width: int = 64,
    heads: int = 4,
    longest: int = LONGEST,
    compile: bool = True,
    **options: Any,
) -> Report:
    """Check whether a module is a causal token mixer: whether anything reaches an output that must not.

    The module maps ``(B, T, C)`` to ``(B, T, C)``. ``forward(x, documents=)``, ``new_cache(batch_size)`` with
    ``forward(x, cache=)``, and ``lengths=`` beside a cache, are checked where they are offered, as
    :class:`zoo.mixers.Mixer` describes them. The module itself is never changed or called: copies of it are.

    Example:
        >>> import zoo
        >>> report = zoo.check("softmax", longest=17, compile=False)
        >>> report.passed, report.failures
        (True, [])

    Args:
        module_or_factory: a module; a class or function that makes one; a registered attention; or ``PACKAGE:NAME``.
        width: model width C. A factory is given it as its first parameter of the names width, dim, d_model,
            hidden_size and embed_dim.
        heads: given to a factory as heads, num_heads or n_heads.
        longest: tokens of the longest input, at least 2.
        compile: whether to check ``torch.compile``, which takes longest.
        options: keywords of the factory.

    Returns:
        A report: ``passed``, ``failures``, and as text a table.

    Raises:
        ValueError: if the module cannot be built or copied. What it raises in a check is a finding.
    """
    if longest < 2 or width < 1:
        raise ValueError(f"longest={longest}, width={width}: expected at least 2 tokens and a width of at least 1.")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        name, module = make_module(module_or_factory, width, heads, options)
        candidate = Candidate(module, width, longest)
        return Report(_describe(name, candidate), tuple(_run_checks(candidate, compile)))


def _describe(name: str, candidate: Candidate) -> str:
    parameters = sum(p.numel() for p in candidate.module.parameters())
    lines = [
        f"{name}: width {candidate.width}, {parameters:,} parameters, evaluation mode, 1 to {candidate.longest} tokens",
        f"compared in {str(candidate.dtype).removeprefix('torch.')}, equal within {candidate.relative:.1g} of the "
        "largest output, 100 times the module's own rounding",
    ]
    if candidate.drawn:
        lines.append(f"drawn, since all zero: {', '.join(candidate.drawn)}")
    return "\n".join(lines)


def _run_checks(candidate: Candidate, compile: bool) -> Iterator[Finding]:
    """Findings of all checks; without a length that the module takes there is only one."""
    yield _shapes(candidate)
    if not candidate.lengths:
        return
    for one in CHECKS:
        if missing := one.missing(candidate):
            yield Finding(one.name, "not offered", missing)
        else:
            yield _finding(one, find_smallest(candidate, one.case))
    yield _compile(candidate) if compile else Finding(COMPILE.name, "left out", "compile=false")


def _finding(one: Check, failing: str | None) -> Finding:
    return Finding(one.name, "FAILED", failing) if failing else Finding(one.name, "passed", one.compared)


def _shapes(candidate: Candidate) -> Finding:
    """The first check, which is made at lengths that the module does not take too."""
    lengths = [n for n in sorted({*SHAPES, candidate.longest}) if n <= candidate.longest]
    wrong = {n: said for n in lengths if (said := try_case(candidate, precision.shapes, n))}
    if not wrong:
        return Finding("shape", "passed", f"finite, (B, T, C), at T={say(lengths)}")
    first = min(wrong)
    others = [n for n in wrong if n != first]
    more = f" (also at T={say(others)})" if others else ""
    return Finding("shape", "FAILED", f"T={first}: {wrong[first]}{more}")


def _compile(candidate: Candidate) -> Finding:
    """The last check, which is slow: at the longest input, and if that fails at the shortest."""
    longest, shortest = candidate.lengths[0], candidate.lengths[-1]
    failing = try_case(candidate, precision.compiled, longest)
    if not failing:
        return _finding(COMPILE, None)
    if smaller := try_case(candidate, precision.compiled, shortest):
        longest, failing = shortest, smaller
    return _finding(COMPILE, f"T={longest}: {failing}")
