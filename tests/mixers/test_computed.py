"""What sparse attentions multiply: counted inside the ops, where no formula of theirs is asked.

The bodies of the softmax ops run in the open, under FlopCounterMode. Of PyTorch's fused attention on the CPU, of which
that counts nothing, every pair of its rectangle counts, whatever its mask hides. Two bounds hold for what is computed:

    cost()      1.5 times what is read in all documents. Packed, twice where blocks of a document lie across two blocks
                of tokens. 2.5 times where the rows of global tokens are computed twice, the second time as a block of
                them with all keys.
    the lists   1.5 times the pairs of the listed blocks or of the rule, which is the formula of the op.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from tests.tiers import named
from zoo.mixers import build
from zoo.mixers.base import Mixer
from zoo.mixers.parts.call import Call
from zoo_kernels.softmax import torch_ops as custom

TOKENS, WIDTH, HEADS = 2048, 32, 4
PACKED = 1000, 1000, 48  # tokens of documents
DENSE = 2 * WIDTH * TOKENS * (TOKENS + 1)
ACROSS = ("bigbird", "topk", "longformer, global")  # documents
CASES = {
    "window": ("window", {"window": 64, "sink_tokens": 0}),
    "window, wide": ("window", {"window": 800, "sink_tokens": 0}),
    "window, wide, sinks": ("window", {"window": 800}),
    "window, sinks": ("window", {"window": 64}),
    "dilated": ("dilated", {"window": 64, "dilation": [1, 4]}),
    "dilated, strided": ("dilated", {"kind": "strided", "dilation": 128}),
    "longformer": ("longformer", {"window": 64}),
    "longformer, dilated": ("longformer", {"window": 64, "dilation": [1, 4], "global_tokens": 64}),
    "longformer, global": ("longformer", {"window": 64, "global_every": 32}),
    "longformer, full": ("longformer", {"window": 64, "global_every": 64, "global_rows": "full"}),
    "bigbird": ("bigbird", {"block": 16}),
    "topk": ("topk", {"top_k": 3, "block": 32}),
    "learned_sparse": ("learned_sparse", {"block": 16, "frozen": True}),
    "adaptive": ("adaptive", {"full_below": 128, "window_below": 512, "block": 16}),
}


def _forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])


def _backward(_: Any, q: Any, k: Any, v: Any, *__: Any, **___: Any) -> int:
    return 2 * q[0] * q[1] * q[2] * k[2] * (3 * q[3] + 2 * v[3])


FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


class Opened(TorchDispatchMode):
    """Runs the bodies of the ops where modes that were entered before see what they call."""

    bodies: ClassVar = {x.op._opoverload: x.op._init_fn for x in (custom.softmax_forward, custom.softmax_backward)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.bodies.get(func, func)(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Modes belong to a thread: work on others would not be counted."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(name: str, options: dict[str, Any], dtype: torch.dtype, packed: bool) -> tuple[Mixer, list[Tensor], Call]:
    """A mixer, queries, keys and values of its heads, and how it is called."""
    torch.manual_seed(0)
    mixer = build(name, width=WIDTH, heads=HEADS, **options).to(dtype)
    heads = [torch.randn(1, TOKENS, HEADS, WIDTH // HEADS, dtype=dtype, requires_grad=True) for _ in range(3)]
    lengths = PACKED if packed else (TOKENS,)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None] if packed else None
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    x = torch.zeros(1, TOKENS, WIDTH, dtype=dtype)
    return mixer, heads, Call(x, positions, documents, None, None, None)


def computed(mixer: Mixer, heads: list[Tensor], call: Call) -> tuple[int, int]:
    """FLOPs of the products of a forward and a backward pass."""
    with FlopCounterMode(display=False, custom_mapping=FUSED) as forward, Opened():
        total = mixer.mix(*heads, call).sum()
    with FlopCounterMode(display=False, custom_mapping=FUSED) as backward, Opened():
        total.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("dtype", named({"fused": torch.float32, "plain products": torch.float64}, "fused"))
@pytest.mark.parametrize("packed", named({"one document": False, "packed": True}, "packed"))
@pytest.mark.parametrize("case", CASES)
def test_no_more_is_computed_than_is_listed(case, packed, dtype):
    """A backward pass has five products for the two of a forward pass."""
    mixer, heads, call = draw(*CASES[case], dtype, packed)
    limit = 2.5 if case == "longformer, full" else 2 if packed and case in ACROSS else 1.5
    read = sum(mixer.mixing_flops(length) * length for length in (PACKED if packed else (TOKENS,)))
    with torch.no_grad(), FlopCounterMode(display=False) as formula:
        mixer.mix(*heads, call)
    listed = formula.get_total_flops()
    most = min(limit * read, 1.5 * listed, DENSE if "wide" in case else DENSE / 4)
    forward, backward = computed(mixer, heads, call)
    assert read <= forward <= most
    assert 2 * read <= backward <= 2.5 * most


def test_exact_attention_of_packed_documents_reads_them_alone():
    """Up to a block of 256 queries that begins in the document before."""
    forward, backward = computed(*draw("softmax", {}, torch.float32, True))
    own = sum(2 * WIDTH * length * (length + 1) for length in PACKED)
    assert own <= forward <= 1.5 * own
    assert 2 * own <= backward <= 4 * own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "plain products"])
def test_dense_attention_is_seen(dtype):
    forward, backward = computed(*draw("softmax", {}, dtype, False))
    assert forward >= DENSE and backward >= 2.5 * DENSE
