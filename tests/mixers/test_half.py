"""Half precision: every attention is finite, and right, in fp16 and under fp16 autocast at inputs that it can meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import zoo.mixers

WIDTH, HEADS, LENGTH = 64, 2, 192
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in zoo.mixers.names()],
    *[("linear", {"normalizer": n, "feature_map": m}) for n in ("l2", "none") for m in ("elu+1", "exp", "identity")],
    ("linear", {"normalizer": "none", "gate": "silu"}),
    ("efficient", {"form": "scalar"}),
]
every_attention = pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=[f"{n} {' '.join(o.values())}" for n, o in OPTIONS]
)
GREW = ("linear", "lightning", "retention", "ssd")  # whose sums fp16 cannot hold


def draw(size: float, length: int = LENGTH) -> torch.Tensor:
    return (size * (0.3 * torch.randn(WIDTH) + torch.randn(1, length, WIDTH))).half()


def exact_and_low(name: str, options: dict[str, Any], x: torch.Tensor, autocast: bool):
    """Outputs and gradients in fp64 and in fp16, from the same numbers."""
    mixer = zoo.mixers.build(name, width=WIDTH, heads=HEADS, **options).half()
    upstream = torch.randn(x.shape).half()
    results = []
    for wide in (True, False):
        mixer = mixer.double() if wide else mixer.float() if autocast else mixer.half()
        mixer.zero_grad()
        dtype = torch.float64 if wide else torch.float32 if autocast else torch.float16
        leaf = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.float16, enabled=autocast and not wide):
            y = mixer(leaf)
        y.backward(upstream.to(y.dtype) / 1024)
        results.append((y.detach().double(), leaf.grad.double()))
    return results


def assert_right(results, tolerance: float) -> None:
    for want, got in zip(*results):
        assert torch.isfinite(got).all()
        assert (got - want).abs().max() <= tolerance * want.abs().max()


@every_attention
@pytest.mark.parametrize("autocast", [False, True], ids=["fp16", "autocast"])
def test_ordinary_inputs(autocast, name, options):
    results = exact_and_low(name, options, draw(1), autocast)
    assert all(torch.isfinite(x).all() for x in results[1])
    if "exp" not in options.values() and name not in ("topk", "learned_sparse", "adaptive", "sparse_linear"):
        assert_right(results, 0.05)  # the others choose keys, or lift numbers to powers


@pytest.mark.parametrize("autocast", [False, True], ids=["fp16", "autocast"])
@pytest.mark.parametrize("name", GREW)
def test_inputs_whose_sums_fp16_cannot_hold(name, autocast):
    options = {"normalizer": "l2"} if name == "linear" else {}
    assert_right(exact_and_low(name, options, draw(30), autocast), 0.1)


@pytest.mark.parametrize("normalizer", ["l2", "none"])
def test_a_row_whose_sums_fp16_cannot_hold(normalizer):
    """Without a norm the sums are beyond 65504 and what is projected from them is not."""
    x = (0.3 * torch.randn(256) + torch.randn(1, 2048, 256)).half()
    mixer = zoo.mixers.build("linear", width=256, heads=4, normalizer=normalizer).half()
    with torch.no_grad():
        y = mixer(x)
        want = mixer.double()(x.double())
    assert (y.double() - want).abs().max() <= 5e-3 * want.abs().max()


@pytest.mark.parametrize("pieces", [(100, 92), (191, 1)])
@pytest.mark.parametrize("name", GREW)
def test_states_of_fp16_are_read_wide(name, pieces):
    options = {"normalizer": "l2"} if name == "linear" else {}
    mixer = zoo.mixers.build(name, width=WIDTH, heads=HEADS, **options).half()
    x = draw(30)
    with torch.no_grad():
        cache = mixer.new_cache(1, LENGTH, dtype=torch.float16)
        parts = torch.cat([mixer(part, cache=cache) for part in x.split(list(pieces), 1)], 1)
        torch.testing.assert_close(parts, mixer(x), rtol=1e-2, atol=0.1)
