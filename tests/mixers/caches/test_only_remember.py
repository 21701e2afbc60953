"""Caches know where tokens are, and nothing of attention."""

from __future__ import annotations

import ast
from pathlib import Path

import zoo.mixers.caches

FILES = sorted(Path(zoo.mixers.caches.__file__).parent.glob("*.py"))
KNOWN = {"zoo_kernels.softmax.ring_slots"}  # where a ring keeps its tokens, which the kernel reads by


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_caches_import_no_kernel():
    of_kernels = {name for file in FILES for name in imported(file) if name.startswith("zoo_kernels")}
    assert of_kernels == KNOWN


def test_caches_import_nothing_of_mixers_but_caches():
    of_mixers = {name.rpartition(".")[0] for file in FILES for name in imported(file) if name.startswith("zoo.")}
    assert [name for name in of_mixers if not name.startswith("zoo.mixers.caches")] == []
