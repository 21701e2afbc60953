"""Fixtures of all tests: one thread, one seed, and buffers that show what was never written."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.tiers import ONE_IN, drawn

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported: its kernels then run on CPU tensors
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what is put into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow, as CI does")
    parser.addoption("--draw", type=int, help="seed by which cases that are slow in two parameters are drawn")


def pytest_configure(config: pytest.Config) -> None:
    """Draw a seed where none is given, of pytest-xdist once for all of its workers."""
    of_worker = getattr(config, "workerinput", {})
    if config.option.draw is None:
        config.option.draw = of_worker.get("draw", random.randrange(10**6))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["draw"] = node.config.option.draw


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out: to skip thousands one by one takes as long as to run some hundreds."""
    slow = config.getoption("--slow")
    left_out = [i for i in items if (not drawn(i, config.option.draw) if slow else "slow" in i.keywords)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        gone = set(map(id, left_out))
        items[:] = [item for item in items if id(item) not in gone]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--slow"):
        terminalreporter.write_line(
            f"cases that are slow in two parameters are one in {ONE_IN}: --draw={config.option.draw}"
        )
    else:
        terminalreporter.write_line("without tests marked slow: --slow, or make test SLOW=1, runs them too")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill every fresh floating-point buffer with NaN, so that an output that is not written is seen."""

    def poison(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def filled(*args: Any, **kwargs: Any) -> torch.Tensor:
            made = make(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return filled

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
    yield
