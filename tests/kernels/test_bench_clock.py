"""zoo_kernels.bench: time limits, notes, memory and masks, with a stand-in for a GPU's clock."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.linear_oracle import recurrence
from tests.kernels.softmax_oracle import dense
from tests.kernels.test_bench import parse
from zoo_kernels.bench import across, clock, peers, report, timed
from zoo_kernels.bench.bench import FLA, Bench
from zoo_kernels.bench.case import Case
from zoo_kernels.bench.record import FORWARD, Shape
from zoo_kernels.linear import bench_cases as linear
from zoo_kernels.softmax import bench_cases as softmax

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


def bench_on(now, piece="contexts_training", minutes=8.0):
    asked = replace(parse(["device=cpu", "dry=true"]), scale="full", minutes=minutes)
    bench = Bench(asked, piece)
    bench.now, bench._begin, bench.clock = now, now.now, clock.EventClock()
    bench.device, bench.ceilings["product"] = SimpleNamespace(type="cuda"), 8e14
    return bench


def lasting(now, seconds, first=0.0, nbytes=0):
    rest = [first]

    def run(number):
        now.hold(nbytes)
        now.now += seconds + (rest.pop() if rest else 0.0)
        now.hold(-nbytes)

    return run


def test_the_clock_of_a_gpu(gpu):
    seen = []
    runs = {"fast": lambda i: seen.append(i), "slow": lasting(gpu, 0.01), "once": lambda i: seen.append("once")}
    found = clock.EventClock(rounds=2, seconds=0.05, calls=8).measure(runs, once=["once"])
    assert found["slow"].low == pytest.approx(10) and found["slow"].high == pytest.approx(10)
    assert found["fast"].median < 1
    assert seen.count("once") == 1 and max(x for x in seen if x != "once") >= 3  # inputs rotate


def test_slow_calls_and_little_time_make_fewer_rounds(gpu):
    clock.EventClock(slow=0.5).measure({"slow": lasting(gpu, 30.0)})
    assert gpu.now == 60
    clock.EventClock(rounds=5, slow=0.5).measure({"medium": lasting(gpu, 0.4)}, limit=2.5)
    assert 60 + 2.5 < gpu.now < 60 + 3.3  # five calls to plan with, two rounds, the second of which passes the limit


def test_a_row_is_judged_by_the_one_before_and_left_out_with_a_note(gpu):
    bench = bench_on(gpu, minutes=1)  # 55.8 s of work
    for work, wanted in ((1, {"ours", "flex"}), (4, {"ours"}), (64, set())):
        runs = {"ours": lasting(gpu, 0.6 * work), "flex": lasting(gpu, 0.6 * work, first=35.0)}
        assert set(bench.measure(f"row {work}", runs, work)) == wanted
    told = ["row 4, flex is left out: it may take 45 s", "row 64, ours is left out: it may take 154 s", "row 64, flex"]
    assert len(bench.notes) == 3 and all(note.startswith(text) for note, text in zip(bench.notes, told))
    assert gpu.now < 60 and not bench.errors


@pytest.mark.parametrize("slower", [1, 8, 40])
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
def test_all_contexts_end_within_the_minutes(gpu, monkeypatch, slower, direction):
    rates = {"ours, softmax": 480e12, "sdpa flash": 350e12, "sdpa cudnn": 550e12, "flex": 400e12}
    compiling = {"ours, softmax": 10.0, "ours, lightning": 10.0, "flex": 30.0}  # ours once, the other for every shape
    compiled = set()

    def passes(form, sets, direction):
        (shape,) = sets
        key = form, form == "flex" and shape
        seconds = timed.flops(shape, direction) / rates[form] if form in rates else 0.01
        first = 0.0 if key in compiled else compiling.get(form, 0.0)
        compiled.add(key)
        return lasting(gpu, slower * seconds, first)

    monkeypatch.setattr(Case, "copies", lambda case, device, dtype: [case.shape])
    monkeypatch.setattr(timed, "passes", passes)
    monkeypatch.setattr(Bench, "ours", lambda bench, function: "ours, softmax")
    names = "ours, softmax", "ours, lightning", "sdpa flash", "sdpa cudnn"
    monkeypatch.setattr(across, "_peers", lambda bench, shape: {name: name for name in names[1:]})
    monkeypatch.setattr(softmax, "flexible", lambda bench, shape: {"flex": "flex"})
    bench = bench_on(gpu)
    bench.run(across.contexts(bench, direction))
    assert gpu.now < 8 * 60 and not bench.errors
    lengths = {who: {r.shape["T"] for r in bench.records if r.implementation == who} for who in (*names, "flex")}
    assert max(lengths["ours, lightning"]) == 512 * 1024
    assert lengths["flex"] and min(lengths["ours, softmax"]) == 1024
    assert all(peak.milliseconds is None and peak.unit == "GB" for peak in bench.records if peak.metric == "peak")
    assert (max(lengths["ours, softmax"]) == 512 * 1024) == (slower == 1)
    assert (not bench.notes + bench.dropped) == (slower == 1) and len(report.table(bench)) < report.LIMIT


class Lasting(int):
    """A row of so many seconds."""

    def __new__(cls, now, seconds):
        row = super().__new__(cls, seconds)
        row.run = lambda bench: lasting(now, seconds)(0)
        return row


def test_rows_alike_are_not_begun_in_less_time_than_the_last_took(gpu):
    bench = bench_on(gpu, "correctness_linear", minutes=1)
    bench.run(Lasting(gpu, seconds) for seconds in (20, 5, 12, 14, 3))
    assert gpu.now == 37 and bench.dropped == ["14", "3"]


def test_peak_memory_of_every_peer(gpu, monkeypatch):
    gpu.hold(1000)
    bench, case = bench_on(gpu), Case("row", SHAPE, None, {})
    monkeypatch.setattr(timed, "passes", lambda form, sets, direction: form)
    forms = {"ours": lasting(gpu, 1, nbytes=3 * 10**9), "sdpa flash": lasting(gpu, 1, nbytes=10**9)}
    timed.add_peaks(bench, case, forms, [], FORWARD)
    assert [(r.implementation, r.metric, r.value) for r in bench.records] == [
        ("ours", "peak", 3.0),
        ("sdpa flash", "peak", 1.0),
    ]
    timed.add_peaks(bench_on(gpu, minutes=0), case, {"ours": fail}, [], FORWARD)
    told = timed.Timed(case, metrics=timed.rates(bench, SHAPE, {FORWARD: ">= 480"}, density=8e11 / 2**20))
    told.tell(bench, FORWARD, {"ours": clock.Timing(2.0, 1.0, 3.0)})
    assert [(r.metric, r.value, r.reached) for r in bench.records[2:]] == [
        ("rate", 400, False),
        ("of matrix rate", 50, None),
    ]
    line = report.table(bench).splitlines()[2]
    assert (
        "ours 2 ms (1-3) rate 400 TFLOP/s [>= 480 short], of matrix rate 50 %, peak 3 GB | sdpa flash peak 1 GB" in line
    )


def test_what_a_peer_cannot_do_is_noted_and_what_ours_cannot_is_an_error(gpu):
    bench = bench_on(gpu)
    assert bench.measure("row", {"ours": fail, "sdpa cudnn": fail, "sdpa flash": lasting(gpu, 1)}).keys() == {
        "sdpa flash"
    }
    assert len(bench.errors) == 1 and bench.notes == ["row, sdpa cudnn is left out: RuntimeError: the 0 one"]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("length", [20, 256, 300])
@pytest.mark.parametrize("window", [None, 1, 16, 17, 100])
def test_the_masks_of_flex_attention(length, window):
    from torch.nn.attention.flex_attention import create_block_mask

    def rule(b, h, i, j):
        return (i >= j) & (i - j < (window or length))

    made = peers.causal_mask(length, torch.device("cpu"), window, block=16)
    wanted = create_block_mask(rule, None, None, length, length, device="cpu", BLOCK_SIZE=16)
    assert torch.equal(made.to_dense(), wanted.to_dense()) and made.seq_lengths == wanted.seq_lengths
    q, k, v = (torch.randn(1, length, 2, 16) for _ in range(3))
    o, _ = dense(q, k, v, window=window)
    torch.testing.assert_close(peers.flex(made, compiled=False)(q, k, v), o)


def test_flash_linear_attention_where_it_is_installed(monkeypatch):
    def chunk(q, k, v, g_gamma, scale, initial_state=None, output_final_state=False):
        state = torch.zeros(q.shape[0], 2, 16, 16) if initial_state is None else initial_state
        o, last, _ = recurrence(q, k, v, g_gamma, state)
        return o * scale, last

    both = SimpleNamespace(chunk_simple_gla=chunk, fused_recurrent_simple_gla=chunk)
    monkeypatch.setattr(peers, "importlib", SimpleNamespace(import_module=lambda name: both))
    bench = Bench(replace(parse(["device=cpu", "dry=true"]), scale="full"), "linear")
    bench.ceilings["copy"], bench.clock = 1e9, clock.Clock()
    linear.lightning(bench, "lightning", SHAPE).run(bench)
    found = {(r.implementation, r.metric): r.value for r in bench.records}
    assert found[FLA, "rms of the difference"] < 1e-5 and ("ours", f"over {FLA}") in found
    q, k, v = (torch.randn(3, 2, 16) for _ in range(3))
    found = peers.fla_peer(bench, step=True)[FLA](q, k, v, torch.zeros(2), torch.zeros(3, 2, 16, 16))
    torch.testing.assert_close(found[:, 0], (q * k).sum(-1, keepdim=True) * v)


def test_the_wall_clock_takes_turns():
    order = []
    wall = clock.WallClock(rounds=3, seconds=10, least=0.0)
    wall.measure({"a": lambda i: order.append("a"), "b": lambda i: order.append("b")}, once=["b"])
    assert order.count("b") == 1
    order.clear()
    wall.measure({"a": lambda i: order.append("a"), "b": lambda i: order.append("b")})
    assert "".join(order)[2:] == "ababab"
