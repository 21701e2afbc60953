"""Shapes, precision, state dicts, compilation and refused arguments."""

from __future__ import annotations

import re
from typing import get_args, get_type_hints

import pytest
import torch

import zoo
from tests.conformance.cases import (
    HEADS,
    WIDTH,
    assert_equal,
    draw,
    every_mixer,
    every_name,
    make,
    new_cache,
    tensors,
    with_slow_shapes,
)
from tests.tiers import named


@every_mixer
def test_outputs_are_finite_at_any_length(name, options):
    mixer = make(name, options).float()
    for length in (1, 2, 1000):
        x = draw(1, length, torch.float32).requires_grad_()
        y = mixer(x)
        assert y.shape == x.shape
        for tensor in (y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])):
            assert torch.isfinite(tensor).all(), f"{length} tokens"


@every_mixer
def test_no_tokens_give_no_output_and_leave_a_cache_as_it_is(name, options):
    mixer = make(name, options)
    for x in (draw(0, 5), draw(0, 0), draw(2, 0)):
        documents = torch.zeros(x.shape[:2], dtype=torch.long)
        assert mixer(x).shape == mixer(x, documents=documents).shape == x.shape
    before, after, cache = draw(2, 40), draw(2, 3), new_cache(mixer, 2)
    got = torch.cat([mixer(piece, cache=cache) for piece in (x, before, x, after, x)], 1)
    assert_equal(got, mixer(torch.cat([before, after], 1)))


@with_slow_shapes
def test_zero_inputs_give_no_nan(name, options):
    mixer, x = make(name, options).float(), torch.zeros(1, 5, WIDTH, requires_grad=True)
    y = mixer(x)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(x.grad).all()


@every_mixer
def test_every_parameter_matters(name, options):
    mixer = make(name, options)
    mixer(draw(2, 70)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in mixer.parameters())


@with_slow_shapes
def test_other_numbers_of_heads(name, options):
    for heads in (1, 2, 8):
        given = options | ({"kv_heads": heads} if "kv_heads" in options else {})
        mixer, x = make(name, given, heads=heads), draw(2, 66)
        y, cache = mixer(x), new_cache(mixer, 2)
        assert_equal(torch.cat([mixer(piece, cache=cache) for piece in x.split([65, 1], 1)], 1), y)


@with_slow_shapes
def test_heads_do_not_read_each_other(name, options):
    """Scaling what one value head gives changes the output: no head is lost or read twice."""
    mixer, x = make(name, options), draw(1, 20)
    outputs = []
    for head in range(HEADS):
        changed = make(name, options)
        with torch.no_grad():
            width = WIDTH // HEADS
            changed.out.weight[:, head * width : (head + 1) * width] = 0
        outputs.append(changed(x) - mixer(x))
    assert all(not torch.allclose(a, b) for i, a in enumerate(outputs) for b in outputs[:i])


@with_slow_shapes
def test_a_state_dict_gives_the_same_mixer(name, options):
    mixer, other, x = make(name, options), make(name, options), draw(2, 70)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    assert not torch.equal(other(x), mixer(x))
    other.load_state_dict(mixer.state_dict())
    assert torch.equal(other(x), mixer(x))


@with_slow_shapes
def test_two_runs_give_the_same(name, options):
    mixer, x = make(name, options), draw(2, 70)
    assert torch.equal(mixer(x), mixer(x))


@with_slow_shapes
def test_separators_are_for_those_that_use_them(name, options):
    mixer, x = make(name, options), draw(2, 20)
    y = mixer(x, separators=torch.rand(2, 20) < 0.3)
    assert y.shape == x.shape and torch.isfinite(y).all()
    assert mixer.uses_separators or torch.equal(y, mixer(x))


@with_slow_shapes
def test_a_state_stays_fp32_under_autocast(name, options):
    mixer, x = make(name, options).float(), draw(2, 70, torch.float32)
    cache = mixer.new_cache(2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for piece in x.split([65, 1, 4], 1):
            mixer(piece, cache=cache)
    assert all(t.dtype == torch.float32 for t in tensors(cache) if t.is_floating_point())


@with_slow_shapes
def test_autocast_costs_no_more_than_bf16(name, options):
    """Forward and backward under autocast stay within the rounding of bf16 of the exact result.

    Or, where the result depends so much on the given numbers, within four times what rounding these alone does.
    """
    x = draw(2, 70)
    results = []
    for dtype, rounded in ((torch.float64, False), (torch.float64, True), (torch.float32, False)):
        mixer, inputs = make(name, options).to(dtype), x.to(dtype, copy=True)
        with torch.no_grad():
            for given in [inputs, *mixer.parameters()] if rounded else []:
                given.copy_(given.bfloat16())
        inputs.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            y = mixer(inputs)
        (grad,) = torch.autograd.grad(y.double().square().mean(), inputs)
        results.append((y.double(), grad.double()))
    for want, of_rounded, got in zip(*results):
        assert (got - want).norm() < max(2**-5 * want.norm(), 4 * (of_rounded - want).norm())


@with_slow_shapes
def test_a_mixer_in_bf16_stays_close_to_fp64_over_a_long_sequence(name, options):
    """Nothing that is raised to a power of the position, as a decay is, may be rounded to bf16."""
    mixer, x = make(name, options), draw(1, 700).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
        want = mixer(x.double())
        got = mixer.to(torch.bfloat16)(x)
    assert got.dtype == torch.bfloat16
    error = (got.double() - want).norm(dim=-1) / want.norm(dim=-1)
    assert error.median() < 2**-5  # a choice of blocks that is close may fall otherwise for a few tokens
    assert error[:, -100:].mean() < 3 * error[:, 100:200].mean() + 2**-7


COMPILED = {"traced": ("eager", False), "compiled": ("aot_eager", False), "packed": ("aot_eager", True)}


@pytest.mark.sampled(3)
@with_slow_shapes
@pytest.mark.parametrize("how", named(COMPILED, "traced"))
def test_compiled_in_one_graph_equals_eager(name, options, how):
    """Traced without a break; in CI with the backward pass in graphs too, which takes twice as long."""
    backend, packed = how
    torch._dynamo.reset()  # mixers share code: one after the other they would use up its budget of recompilations
    mixer, x = make(name, options), draw(1, 70).requires_grad_()
    compiled = torch.compile(mixer, backend=backend, fullgraph=True, dynamic=False)
    documents = torch.arange(70)[None] // 40 if packed else None
    want, got = mixer(x, documents=documents), compiled(x, documents=documents)
    assert_equal(got, want, 1e-12)
    assert_equal(*(torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want)), 1e-12)


@every_name
def test_another_device_is_neither_left_nor_waited_for(name):
    """On the meta device a tensor of the CPU beside its own is an error, and so is a value that the host asks for."""
    mixer, x = make(name).to("meta"), torch.randn(2, 700, WIDTH, device="meta", dtype=torch.float64, requires_grad=True)
    for documents in (None, torch.zeros(2, 700, dtype=torch.long, device="meta")):
        y = mixer(x, documents=documents)
        (grad,) = torch.autograd.grad(y.sum(), x)
        assert y.device == grad.device == x.device


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["softmax", "lightning", "performer", "window", "bigbird", "topk", "window_linear", "kda"]
)
def test_compiled_by_inductor_equals_eager(name):
    """One of each family, forward and backward, through generated code."""
    torch._dynamo.reset()
    mixer, x = make(name).float(), draw(1, 70, torch.float32).requires_grad_()
    compiled = torch.compile(mixer, fullgraph=True, dynamic=False)
    results = []
    for run in (mixer, compiled):
        y = run(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()])))
    for want, got in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@every_name
def test_an_unknown_option_is_refused_with_the_known_ones(name):
    known = zoo.mixers.option_names(name)
    with pytest.raises(ValueError, match=rf"'{name}' has no option 'widow'.*{', '.join(known)}"):
        zoo.mixers.build(name, width=WIDTH, heads=HEADS, widow=3)


@every_name
def test_values_of_another_type_are_refused_by_name(name):
    hints = get_type_hints(zoo.mixers.get(name).__init__)
    for option in zoo.mixers.option_names(name):
        takes = {hints[option], *get_args(hints[option])}
        wrong = [4 if str in takes else "four", {"a": 1}, *([] if float in takes else [2.5]), float("nan")]
        for value in wrong:
            with pytest.raises(ValueError, match=f"{name}: {option}={re.escape(repr(value))}: expected "):
                zoo.mixers.build(name, width=WIDTH, heads=HEADS, **{option: value})


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=f"unknown attention 'lightnig'.*{', '.join(zoo.mixers.names())}"):
        zoo.mixers.build("lightnig", width=WIDTH, heads=HEADS)


@every_name
def test_shapes_that_do_not_fit_are_refused(name):
    for change, message in (
        ({"heads": 0}, "heads=0"),
        ({"layer": 2}, r"layer=2 is outside 0\.\.1"),
        ({"layer": -1}, "layer=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.mixers.build(name, **({"width": WIDTH, "heads": HEADS, "depth": 2} | change))


@every_name
def test_heads_that_do_not_divide_the_width_are_refused(name):
    with pytest.raises(ValueError, match="width=32 is not divisible by heads=5"):
        zoo.mixers.build(name, width=WIDTH, heads=5)


@every_name
def test_wrong_values_of_choices_are_refused_by_name(name):
    for option in {"gate", "norm", "decay", "lrpe", "feature_map", "normalizer"} & set(zoo.mixers.option_names(name)):
        with pytest.raises(ValueError, match=f"{option}='nonsense': expected one of"):
            make(name, {option: "nonsense"})


def test_two_mixers_of_one_name_are_refused():
    from zoo.mixers.registry import register

    with pytest.raises(ValueError, match="two attentions are called 'softmax'"):
        register("softmax")(zoo.mixers.get("lightning"))
    assert zoo.mixers.get("softmax") is not zoo.mixers.get("lightning")
