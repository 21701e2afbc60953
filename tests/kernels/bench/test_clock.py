"""zoo_kernels.bench: clocks, notes and memory, with a stand-in for a GPU's clock."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.bench.test_script import parse
from zoo_kernels.bench import clock, report, timed
from zoo_kernels.bench.bench import Bench
from zoo_kernels.bench.case import Case
from zoo_kernels.bench.record import FORWARD, Shape, Timing

SHAPE = Shape(1, 128, 2, 16)


def fail(name):
    raise RuntimeError(f"the {name} one")


class Clock:
    """Seconds that pass when somebody says so; a stand-in for a GPU's clock, its events and its memory."""

    def __init__(self):
        self.now, self.held, self.most = 0.0, 0, 0

    def __call__(self):
        return self.now

    def event(self, enable_timing):
        event = SimpleNamespace()
        event.record = lambda: setattr(event, "at", self.now)
        event.elapsed_time = lambda other: (other.at - event.at) * 1e3
        return event

    def reset(self):
        self.most = self.held

    def hold(self, nbytes):
        self.held += nbytes
        self.most = max(self.most, self.held)


@pytest.fixture
def gpu(monkeypatch):
    now = Clock()
    fake = SimpleNamespace(Event=now.event, _sleep=lambda cycles: None, synchronize=lambda: None)
    fake.reset_peak_memory_stats, fake.empty_cache = now.reset, lambda: None
    fake.memory_allocated, fake.max_memory_allocated = lambda: now.held, lambda: now.most
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=now))
    return now


def bench_on(now):
    bench = Bench(replace(parse(["device=cpu", "dry=true"]), scale="full"), "contexts_training")
    bench.device, bench.clock = SimpleNamespace(type="cuda"), clock.CLOCKS["cuda"]
    bench.ceilings["product"] = 8e14
    return bench


def lasting(now, seconds, first=0.0, nbytes=0):
    rest = [first]

    def run(number):
        now.hold(nbytes)
        now.now += seconds + (rest.pop() if rest else 0.0)
        now.hold(-nbytes)

    return run


def measured(runs, **changed):
    one = replace(clock.CLOCKS["cuda"], **changed)
    return one.measure(runs, {who: one.sample(run, 1) for who, run in runs.items()})


def test_the_clock_of_a_gpu(gpu):
    seen = []
    found = measured({"fast": seen.append, "slow": lasting(gpu, 0.01)})
    assert found["slow"].low == pytest.approx(10) and found["slow"].high == pytest.approx(10)
    assert found["fast"].median < 1
    assert len(seen) == 2 + 5 * 8 and max(seen) == 7  # inputs rotate


def test_slow_calls_are_made_once_and_others_a_few_times(gpu):
    assert measured({"slow": lasting(gpu, 30.0)})["slow"].median == 30_000 and gpu.now == 30
    measured({"medium": lasting(gpu, 0.4)}, seconds=1.0)
    assert gpu.now == pytest.approx(30 + 4 * 0.4)  # two calls to plan with, two rounds


def test_peak_memory_of_every_peer(gpu, monkeypatch):
    gpu.hold(1000)
    bench, case = bench_on(gpu), Case("row", SHAPE, None, {})
    monkeypatch.setattr(Case, "passes", lambda case, form, sets, direction: form)
    forms = {"ours": lasting(gpu, 1, nbytes=3 * 10**9), "sdpa flash": lasting(gpu, 1, nbytes=10**9)}
    row = bench.row(case.name, SHAPE, "", FORWARD)
    timed.Timed(case).add_peaks(bench, row, forms, [])
    assert [(r.implementation, r.metric, r.value) for r in bench.found.records] == [
        ("ours", "peak", 3.0),
        ("sdpa flash", "peak", 1.0),
    ]
    told = timed.Timed(case, metrics=timed.rates(bench, SHAPE, {FORWARD: ">= 480"}, density=8e11 / 2**20))
    told.tell(bench, row, {"ours": Timing(2.0, 1.0, 3.0)})
    assert [(r.metric, r.value, r.reached) for r in bench.found.records[2:]] == [
        ("rate", 400, False),
        ("of matrix rate", 50, None),
    ]
    line = report.table("x", [bench.found]).splitlines()[2]
    assert (
        "ours 2 ms (1-3) rate 400 TFLOP/s [>= 480 short], of matrix rate 50 %, peak 3 GB | sdpa flash peak 1 GB" in line
    )


def test_what_a_peer_cannot_do_is_noted_and_what_ours_cannot_is_an_error(gpu):
    bench = bench_on(gpu)
    assert bench.measure("row", {"ours": fail, "sdpa cudnn": fail, "sdpa flash": lasting(gpu, 1)}).keys() == {
        "sdpa flash"
    }
    assert len(bench.found.errors) == 1 and bench.found.notes == [
        "row, sdpa cudnn is left out: RuntimeError: the 0 one"
    ]


def test_the_wall_clock_takes_turns():
    order = []
    wall = clock.Clock(clock.host_seconds, rounds=3, turn=0.0, seconds=10)
    wall.measure({x: lambda i, x=x: order.append(x) for x in "ab"}, {"a": [0.0], "b": [0.0]})
    assert "".join(order)[2:] == "ababab"
    order.clear()
    found = clock.CLOCKS["dry"].measure({"a": fail}, {"a": [2.0]})
    assert found == {"a": Timing(2000.0, 2000.0, 2000.0)}  # the first call is all
