"""``zoo.check`` finds every way to break the contract at its smallest case, and passes what is right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import zoo
from tests.conformance import broken_modules as broken
from tests.tiers import in_ci

WIDTH, LONGEST = 16, 9  # one token more than the smallest case in which any of them fails
FUTURE = {"future, by outlier", "future, by gradient", "length"}
BROKEN = {
    broken.LeakOfOneToken: (FUTURE, "future, by outlier: T=2: changing token 1 changes output 0 by "),
    broken.LeakOverABlock: (FUTURE, "future, by outlier: T=8: changing token 4 changes output 3 by "),
    broken.LeakThroughAChoice: (
        {"future, by outlier", "length"},
        "future, by outlier: T=2: changing token 1 changes output 0 by ",
    ),
    broken.LeakOfTheGradient: ({"future, by gradient"}, "T=2: output 0 has a gradient of 0.62 with respect to token 1"),
    broken.NoGradient: ({"future, by gradient"}, "T=1: the output has no gradient with respect to the input"),
    broken.BatchNorm: ({"batch"}, "batch: T=1: row 0 of 3 alone gives another output 0, by "),
    broken.DividedByLength: ({"length"}, "length: T=2: the first token alone gives another output 0, by "),
    broken.Stateful: (
        {"equal calls"},
        "at output 0: a forward pass changes calls",
    ),
    broken.Random: ({"equal calls", "batch"}, "at output 0: a forward pass draws random numbers in evaluation mode"),
    broken.WrongDtype: ({"fp64", "bf16", "fp16"}, "bf16: T=1: the output is of torch.float32, expected torch.bfloat16"),
    broken.CoarseInHalf: ({"bf16", "fp16"}, "fp16: T=1: the error of the median token is "),
    broken.GraphBreak: ({"compile"}, "compile: T=3: raises "),
    broken.Dead: ({"reads its input"}, "T=1: no output changes with the input: the other checks see nothing"),
    broken.LeakThroughDocuments: (
        {"documents"},
        "documents: T=2: documents of 1 and 1 tokens: output 0 of document 1 differs from that of it alone by ",
    ),
    broken.CacheThatForgets: (
        {"cache"},
        "cache: T=2: in pieces of 1 and 1 through a cache output 1 differs from the whole by ",
    ),
    broken.SharedCache: ({"cache"}, "cache: T=1: with two caches in turn, in one piece, output 0 differs by "),
    broken.PaddingThatCounts: (
        {"ragged rows"},
        "ragged rows: T=1: rows of 1, 1 and 0 tokens, then 1 more: output 0 of row 2 differs from that of it alone by ",
    ),
}


@pytest.mark.parametrize("module", BROKEN, ids=lambda module: module.__name__)
def test_a_broken_module_fails_where_it_is_broken_at_the_smallest_case(module):
    checks, said = BROKEN[module]
    report = zoo.check(module, width=WIDTH, longest=LONGEST, compile=module is broken.GraphBreak)
    assert {finding.check for finding in report.failures} == checks
    assert not report.passed and said in str(report) + "".join(map(str, report.failures))


def findings(module):
    return list(map(str, zoo.check(module, width=WIDTH, longest=LONGEST, compile=False).failures))


def test_lengths_that_a_module_does_not_take_are_one_finding():
    more = "(also at T=3, 5 and 9)"
    assert findings(broken.EvenOnly) == [f"shape: T=1: raises RuntimeError: an even length, please {more}"]


def test_what_is_no_tensor_or_not_finite_is_a_finding():
    (said,) = findings(broken.Tuple)
    assert said.startswith("shape: T=1: returns a tuple: expected a tensor; wrap the module")
    assert findings(broken.NotFinite)[0] == "shape: T=5: output 4 of 1 rows is not finite (also at T=9)"


class TorchAttention(nn.Module):
    def __init__(self, embed_dim, num_heads):
        super().__init__()
        self.heads, self.qkv, self.out = num_heads, nn.Linear(embed_dim, 3 * embed_dim), nn.Linear(embed_dim, embed_dim)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    def __init__(self, hidden_size):
        super().__init__()
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)

    def forward(self, x):
        return self.gru(x)[0]


@pytest.mark.parametrize("module", [broken.RunningSum, *in_ci(broken.Plain, TorchAttention)], ids=lambda m: m.__name__)
def test_a_right_module_passes(module):
    report = zoo.check(module, width=WIDTH, longest=70)
    assert report.passed, report
    offered = [f.check for f in report.findings if f.verdict == "not offered"]
    assert offered == ([] if module is broken.RunningSum else ["documents", "cache", "ragged rows"])


def test_a_recurrent_network_passes():
    report = zoo.check(Recurrent, width=WIDTH, longest=70, compile=False)
    assert report.passed, report


ONE_OF_EACH = ("lightning", "window", "topk")  # a state, a ring of keys, all keys: the contract holds all to more


@pytest.mark.parametrize("attention", [*ONE_OF_EACH, *in_ci(*sorted({*zoo.mixers.names()} - {*ONE_OF_EACH}))])
def test_every_registered_attention_passes(attention):
    report = zoo.check(attention, width=WIDTH, heads=2, longest=9, compile=False)
    assert report.passed, report
    assert all(finding.verdict in ("passed", "left out") for finding in report.findings)


def test_a_module_is_neither_changed_nor_called_and_chance_goes_on_as_before():
    module = broken.Stateful(WIDTH)
    nn.init.zeros_(module.inner.project.bias)
    before, mode = copy.deepcopy(module.state_dict()), module.training
    torch.manual_seed(3)
    want = torch.rand(3)
    torch.manual_seed(3)
    report = zoo.check(module, width=WIDTH, longest=5, compile=False)
    assert torch.equal(torch.rand(3), want) and module.training == mode
    assert all(map(torch.equal, module.state_dict().values(), before.values()))
    assert "drawn, since all zero: inner.project.bias" in str(report)


def test_what_is_hidden_behind_zeros_is_found():
    module = LeakBehindZeros(WIDTH)
    assert torch.equal(module(torch.randn(1, 5, WIDTH)), torch.zeros(1, 5, WIDTH))
    assert {f.check for f in zoo.check(module, width=WIDTH, longest=5, compile=False).failures} == FUTURE


class LeakBehindZeros(broken.LeakOfOneToken):
    def __init__(self, width):
        super().__init__(width)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.gain * super().forward(x)


def test_a_module_that_rounds_inside_is_compared_by_its_own_rounding():
    class Inside(broken.Plain):
        def forward(self, x):
            return self.inner(x).float().cumsum(1).to(x.dtype)

    report = zoo.check(Inside, width=WIDTH, longest=LONGEST, compile=False)
    assert report.passed, report
    (share,) = (float(line.split()[5]) for line in str(report).splitlines() if "equal within" in line)
    assert 1e-6 < share < 1e-3


def with_a_graph():
    module = nn.Identity()
    module.kept = torch.ones(2, requires_grad=True) * 2
    return module


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("softmx", {}, "unknown attention 'softmx'"),
        ("softmax", {"widow": 3}, "'softmax' has no option 'widow'"),
        ("tests.conformance.broken_modules:Plane", {}, "tests.conformance.broken_modules has no Plane"),
        ("no_such_package:Plain", {}, "importing no_such_package raises ModuleNotFoundError"),
        (broken.Plain, {"depth": 3}, "Plain: got an unexpected keyword argument 'depth'; it takes width"),
        (TorchAttention, {"head": 3}, "TorchAttention: got an unexpected keyword argument 'head'"),
        (lambda size: nn.Identity(), {}, "missing a required argument: 'size'; it takes size"),
        (lambda dim: dim, {}, "makes a int: expected a torch.nn.Module"),
        (lambda dim: nn.Linear(dim, None), {}, "raises TypeError: "),
        (nn.Identity(), {"depth": 3}, "depth: Identity is a module and takes no options"),
        (3, {}, "3 is a int: expected a module, or what makes one"),
        (
            with_a_graph(),
            {},
            "the module cannot be copied, give its class or a function that makes one that can: RuntimeError: ",
        ),
        ("softmax", {"longest": 1}, "longest=1, width=16: expected at least 2 tokens"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(target, options, message):
    with pytest.raises(ValueError) as refusal:
        zoo.check(target, width=WIDTH, **options)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)
