"""What a sweep says of the time that is left."""

from types import SimpleNamespace

import pytest

from zoo.sweeps import status as progress
from zoo.sweeps.status import Progress, duration


class Run(SimpleNamespace):
    def __str__(self):
        return self.key


@pytest.mark.parametrize(("jobs", "left"), [(1, "about 250 s left"), (2, "about 125 s left")])
def test_the_mean_of_finished_runs_tells_what_is_left(monkeypatch, capsys, jobs, left):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(progress, "duration", lambda seconds: f"{seconds:.0f} s")
    shown = Progress(total=4, jobs=jobs)
    first, second = Run(key="a"), Run(key="b")
    shown.start(first)
    clock.now = 50.0
    shown.start(second)
    clock.now = 100.0
    shown.end(first, "finished", finished=True)  # 100 s each, three to come, 50 s of one are over
    assert capsys.readouterr().out == f"[1/4] a: finished; {left}\n"


def test_a_failure_tells_nothing_of_the_time(capsys):
    shown = Progress(total=2, jobs=1)
    run = Run(key="a")
    shown.start(run)
    shown.end(run, "failed", finished=False)
    assert capsys.readouterr().out == "[1/2] a: failed\n"


def test_durations_are_short_to_read():
    assert [duration(s) for s in (3.4, 89, 90, 7_140, 12_000)] == ["3 s", "89 s", "2 min", "119 min", "3 h 20 min"]
