"""Which backend runs, and what is said where the one that was asked for cannot."""

from __future__ import annotations

import logging

import pytest
import torch

from zoo_kernels import BackendError, backend, launch, linear_attention, softmax_attention

X = torch.randn(1, 3, 2, 4)


@pytest.fixture(autouse=True)
def untold():
    backend._announce_once.cache_clear()
    yield
    backend._announce_once.cache_clear()


def calls():
    yield lambda name: linear_attention(X, X, X, backend=name)
    yield lambda name: softmax_attention(X, X, X, backend=name)


@pytest.mark.parametrize("call", list(calls()), ids=["linear", "softmax"])
def test_triton_without_the_package_says_what_is_missing(call, monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"cannot run .* attention here: the package triton is not installed\. Use"):
        call("triton")


@pytest.mark.parametrize("call", list(calls()), ids=["linear", "softmax"])
def test_triton_without_a_gpu_says_what_is_missing(call, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="the tensors are on cpu; it needs a CUDA device"):
        call("triton")


def test_an_old_gpu_is_named_with_what_it_lacks(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert launch.obstacle(torch.device("cuda")) == "the GPU has compute capability (7, 5), and 8.0 is needed"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert launch.obstacle(torch.device("cuda")) is None


def test_more_rows_than_a_grid_holds_are_named():
    pytest.importorskip("triton")
    q = torch.zeros(1, 1, 1, 16).expand(70_000, 1, 1, 16)
    with launch.record("sm_90"), pytest.raises(BackendError, match="70000 rows of 1 heads, and it takes up to 65535"):
        softmax_attention(q, q, q, backend="triton")
    o, _ = linear_attention(q, q, q, backend="auto")
    assert o.shape == q.shape


def test_auto_says_once_what_it_takes_and_why(caplog):
    with caplog.at_level(logging.INFO, "zoo_kernels"):
        for _ in range(3):
            linear_attention(X, X, X)
            softmax_attention(X, X, X)
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"{family} attention on cpu: backend=torch (the Triton form needs a CUDA device)"
        for family in ("linear", "softmax")
    ]


def test_a_backend_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(BackendError, match="backend='cuda' does not exist for linear attention: expected auto, triton"):
        linear_attention(X, X, X, backend="cuda")


def test_a_family_without_a_triton_form_says_so(monkeypatch):
    monkeypatch.setattr(backend, "obstacle", lambda device: None)
    with pytest.raises(BackendError, match="cannot run toy attention here: it has no Triton form"):
        backend.choose_backend("triton", "toy attention", {}, torch.zeros(1))
