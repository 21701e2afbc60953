"""zoo_kernels.bench: clocks, notes, memory and masks, with a stand-in for a GPU's clock."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.linear_oracle import recurrence
from tests.kernels.softmax_oracle import dense
from tests.kernels.test_bench import parse
from zoo_kernels.bench import clock, peers, report, timed
from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.case import Case
from zoo_kernels.bench.record import FORWARD, Row, Shape, Timing
from zoo_kernels.linear import bench_cases as linear

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
    monkeypatch.setattr(timed, "passes", lambda form, sets, direction: form)
    forms = {"ours": lasting(gpu, 1, nbytes=3 * 10**9), "sdpa flash": lasting(gpu, 1, nbytes=10**9)}
    row = Row(case.name, SHAPE, torch.float32, "", FORWARD)
    timed.add_peaks(bench, row, forms, [])
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


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("length", [20, 256, 300])
@pytest.mark.parametrize("window", [None, 1, 16, 17, 100])
def test_the_masks_of_flex_attention(length, window):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def rule(b, h, i, j):
        return (i >= j) & (i - j < (window or length))

    made = peers.causal_mask(length, torch.device("cpu"), window, block=16)
    wanted = create_block_mask(rule, None, None, length, length, device="cpu", BLOCK_SIZE=16)
    assert torch.equal(made.to_dense(), wanted.to_dense()) and made.seq_lengths == wanted.seq_lengths
    q, k, v = (torch.randn(1, length, 2, 16) for _ in range(3))
    o, _ = dense(q, k, v, window=window)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    torch.testing.assert_close(flex_attention(*heads_first, block_mask=made).transpose(1, 2), o)


def test_flash_linear_attention_where_it_is_installed(monkeypatch):
    def chunk(q, k, v, g_gamma, scale, initial_state=None, output_final_state=False):
        state = torch.zeros(q.shape[0], 2, 16, 16) if initial_state is None else initial_state
        o, last, _ = recurrence(q, k, v, g_gamma, state)
        return o * scale, last

    both = SimpleNamespace(chunk_simple_gla=chunk, fused_recurrent_simple_gla=chunk)
    monkeypatch.setattr(peers, "importlib", SimpleNamespace(import_module=lambda name: both))
    bench = Bench(replace(parse(["device=cpu", "dry=true"]), scale="full"), "linear")
    bench.ceilings["copy"], bench.clock = 1e9, clock.CLOCKS["dry"]
    linear.lightning(bench, "lightning", SHAPE).run(bench)
    found = {(r.implementation, r.metric): r.value for r in bench.found.records}
    assert found[FLA, "rms of the difference"] < 1e-5 and ("ours", f"over {FLA}") in found
    q, k, v = (torch.randn(3, 2, 16) for _ in range(3))
    found = peers.fla_peer(bench, step=True)[FLA](q, k, v, torch.zeros(2), torch.zeros(3, 2, 16, 16))
    torch.testing.assert_close(found[:, 0], (q * k).sum(-1, keepdim=True) * v)


def test_the_wall_clock_takes_turns():
    order = []
    wall = clock.Clock(clock.host_seconds, rounds=3, turn=0.0, seconds=10)
    wall.measure({x: lambda i, x=x: order.append(x) for x in "ab"}, {"a": [0.0], "b": [0.0]})
    assert "".join(order)[2:] == "ababab"
    order.clear()
    found = clock.CLOCKS["dry"].measure({"a": fail}, {"a": [2.0]})
    assert found == {"a": Timing(2000.0, 2000.0, 2000.0)}  # the first call is all
