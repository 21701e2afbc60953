"""Heads that are brought together step by step, and then convert without a loss."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from tests.conversion.test_convert import decoder_of, ids
from zoo.config import ConfigError
from zoo.conversion.conversion_plan import plan_conversion
from zoo.conversion.convert_run import convert_decoder
from zoo.conversion.head_merging import METHODS
from zoo.training.head_sharing import GradualSharing, blend_heads, sharing_callbacks


def key_heads(decoder, layer=0):
    return decoder.layers[layer].mixer.key.weight.detach().clone().unflatten(0, (4, -1))


def run_steps(callback, decoder, steps, start=0, micro=1, max_steps=100, change=lambda: None):
    """Call the callback as a trainer would."""
    trainer = SimpleNamespace(global_step=start, max_steps=max_steps, strategy=None)
    module = SimpleNamespace(decoder=decoder)
    callback.on_train_start(trainer, module)
    for step in range(start, start + steps):
        for part in range(micro):
            if part == micro - 1:
                trainer.global_step = step + 1
                change()
            callback.on_train_batch_end(trainer, module, None, None, step * micro + part)


def test_without_gradients_heads_are_the_blend_of_own_and_shared_ones():
    decoder = decoder_of("softmax", "lightning", "softmax")
    own = [key_heads(decoder, layer) for layer in (0, 2)]
    lightning = decoder.layers[1].mixer.key.weight.detach().clone()
    callback = GradualSharing(2, "mean", 8)
    for alpha in (1 / 8, 2 / 8, 3 / 8, 4 / 8):
        run_steps(callback, decoder, 1, start=round(alpha * 8) - 1, micro=3)
        for layer, heads in zip((0, 2), own):
            shared = heads.unflatten(0, (2, 2)).mean(1).repeat_interleave(2, 0)
            torch.testing.assert_close(key_heads(decoder, layer), (1 - alpha) * heads + alpha * shared)
    run_steps(callback, decoder, 4, start=4)
    shared = own[0].unflatten(0, (2, 2)).mean(1).repeat_interleave(2, 0)
    torch.testing.assert_close(key_heads(decoder), shared)
    assert torch.equal(decoder.layers[1].mixer.key.weight, lightning)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"rope_fraction": 0.5, "gate": "silu"}, {"rope_theta": None}])
def test_at_alpha_1_the_model_converts_exactly_whatever_the_optimizer_did(method, options):
    decoder, x = decoder_of("softmax", "softmax", mixers={"softmax": options}), ids()

    @torch.no_grad()
    def change():
        for weight in decoder.parameters():
            weight.add_(0.1 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0)

    for steps in (5, 3):  # 3 more after the heads are shared
        run_steps(GradualSharing(2, method, 5), decoder, steps, start=5 - steps if steps == 5 else 5, change=change)
        converted, errors = convert_decoder(decoder, plan_conversion(decoder, "gqa", 2, method))
        torch.testing.assert_close(converted(x), decoder(x), rtol=0, atol=1e-10)
    if method != "svd":
        heads = key_heads(decoder)
        assert torch.equal(heads[0], heads[1]) and torch.equal(heads[2], heads[3])
        assert [(e.keys, e.values) for e in errors] == [(0, 0)] * 2


def test_a_run_that_was_stopped_between_steps_goes_on_as_if_it_had_not_been():
    whole, parts = decoder_of("softmax"), decoder_of("softmax")
    run_steps(GradualSharing(2, "svd", 7), whole, 6)
    run_steps(GradualSharing(2, "svd", 7), parts, 4)
    run_steps(GradualSharing(2, "svd", 7), parts, 2, start=4)
    assert torch.equal(whole.layers[0].mixer.key.weight, parts.layers[0].mixer.key.weight)
    assert torch.equal(whole.layers[0].mixer.value.weight, parts.layers[0].mixer.value.weight)


def test_a_blend_of_everything_own_changes_nothing():
    decoder = decoder_of("softmax", dtype=torch.float32)
    before = key_heads(decoder)
    blend_heads(decoder, plan_conversion(decoder, "gqa", 2, "svd"), 1.0)
    assert torch.equal(key_heads(decoder), before)
    blend_heads(decoder, plan_conversion(decoder, "gqa", 4, "svd"), 0.0)
    assert torch.equal(key_heads(decoder), before)


def test_what_cannot_be_shared_says_so():
    decoder = decoder_of("softmax", mixers={"softmax": {"qk_norm": True}})
    for options, trainer, message in (
        ((2, "mean", 9), {"max_steps": 8}, "share_heads.steps=9 is more than the budget of 8"),
        ((2, "mean", 2), {"strategy": FSDPStrategy()}, "not fsdp"),
        ((3, "mean", 2), {}, "kv_heads=3 does not divide"),
        ((2, "svd", 2), {}, "qk_norm=true"),
    ):
        fake = SimpleNamespace(**{"global_step": 0, "max_steps": 100, "strategy": None, **trainer})
        with pytest.raises(ConfigError, match=message):
            GradualSharing(*options).on_train_start(fake, SimpleNamespace(decoder=decoder))
    with pytest.raises(ConfigError, match=r"share_heads\.steps=0"):
        sharing_callbacks({"kv_heads": 2, "method": "mean", "steps": 0})
    assert sharing_callbacks(None) == sharing_callbacks({"kv_heads": None, "method": "mean", "steps": 0}) == []
